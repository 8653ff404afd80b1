"""What this machine can run, and whether the metrics behave on pictures of which the answer is known."""
