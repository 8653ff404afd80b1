"""Pictures and captions to features: what the metrics compare."""
