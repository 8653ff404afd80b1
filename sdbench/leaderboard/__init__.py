"""From records to tables: comparable rows, their ranks, and ratios to the teacher; without torch."""
