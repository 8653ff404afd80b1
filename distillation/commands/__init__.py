"""The subcommands of `distillation`, one module each where they have options of their own."""
