"""From records to what people read: one HTML page, and the results in a model card; without torch.

Charts are SVG from matplotlib, inlined. Altair and Bokeh would add hovering and zooming, for 0.8 to 1 MB of script that needs
`eval` or workers, draws nothing without JavaScript, and prints only what is on the screen. A static SVG takes some 15 kB, prints, scales,
takes its colours from the page's light and dark variables, and keeps the Content-Security-Policy strict. What a
reader would hover for is in the tables beside each chart, as text.
"""
