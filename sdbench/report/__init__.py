"""Records to what people look at: files of numbers, one HTML page, and a model card's results. Without torch.

Charts are matplotlib's SVG, inlined. Altair and Bokeh would make them hover and zoom, for 0.8 to 1 MB of script that needs
`eval` or workers, draws nothing without JavaScript and prints what is on the screen; a static SVG costs some 15 kB, prints, scales,
takes its colours from the page's light and dark variables, and keeps the Content-Security-Policy strict. What a
reader would hover for stands in the tables, as text, beside each chart.
"""

MAX_MODELS = 24  # of a section that the page says more of than its table
