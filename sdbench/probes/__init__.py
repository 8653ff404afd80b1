"""Latency, memory and FLOPs: numbers from running a model, each round of them in a process of its own."""
