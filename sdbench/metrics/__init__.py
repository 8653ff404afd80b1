"""Metrics: feature or score arrays in, numbers out. One protocol family per file, numpy float64, no files, no torch."""
