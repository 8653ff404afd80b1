"""Makes students from a teacher: prunes SDXL's UNet stage by stage and trains it with layer-level losses (arXiv 2401.02677)."""
