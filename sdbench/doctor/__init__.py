"""What this machine can run, and whether the metrics behave on pictures whose right answer is known."""
