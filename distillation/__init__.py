"""Prune SDXL's UNet stage by stage and train the student with layer-level losses (arXiv 2401.02677)."""
