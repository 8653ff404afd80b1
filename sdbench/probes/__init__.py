"""Latency, memory and FLOPs of a model, measured in rounds, each in a process of its own."""
