"""Protocols: the exact ways in which a number is made of pictures and prompts, a family of them a file, each with a table at its end."""
