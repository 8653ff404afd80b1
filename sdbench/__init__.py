"""sdbench: measure SDXL and its distilled students, and say whether a checkpoint may ship."""

__version__ = "0.1.0"
