"""Protocols: the exact ways in which a number is made of images and prompts, a family of them a file, each with a table at its end."""
