"""The models to measure: their catalogue, their architectures as data, and loading them with checks."""
