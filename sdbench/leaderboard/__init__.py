"""From records to tables: comparable rows, their ranks, and ratios to the teacher; without torch."""

MAX_MODELS = 24  # models of a section that get more than their row in the tables
