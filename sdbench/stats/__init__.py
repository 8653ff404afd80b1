"""Intervals for readers, bounds that decide, looks that keep the error rate of one: arrays in, numbers out, without torch."""
