"""Training, of the embedded family and of students: the loop and its checkpoints, what a UNet learns, and cached latents."""
