"""Protocols: the exact ways in which numbers are computed from images and prompts; one file per kind, with a table at its end."""
