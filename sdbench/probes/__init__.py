"""Latency, memory and MACs of a model, measured in rounds, each in a process of its own."""
