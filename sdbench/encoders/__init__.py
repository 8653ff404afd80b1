"""Encoders: pictures and captions to the features that metrics compare."""
