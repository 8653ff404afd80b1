"""The one training loop, and the cached latents that it feeds on, for the embedded family and for students."""
