"""How the embedded family's weights were made: one module per network, one resumable loop for all."""
