"""The training loop and its cached latents, for both the embedded family and students."""
