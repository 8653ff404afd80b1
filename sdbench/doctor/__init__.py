"""What this machine can run, and whether the metrics behave on images whose right answer is known."""
