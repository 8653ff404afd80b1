"""Latency and memory of a model, measured in rounds, each in a process of its own; and its work, counted."""
