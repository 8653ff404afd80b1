"""Metrics: feature or score arrays in, numbers out. One kind of metric per file, numpy float64, no files, no torch."""
