"""Intervals for readers, bounds for verdicts, and looks at growing data that keep the error rate: arrays in, numbers out, without torch."""
