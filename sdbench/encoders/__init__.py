"""Encoders: images and captions to the features that metrics compare."""
