"""Records to tables: rows that may be compared, their ranks, ratios to the teacher; without torch."""
