"""Subcommands of `distillation` that have options of their own, one module each."""
