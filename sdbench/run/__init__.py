"""Run a suite over models, and write a record of each."""
