"""From records to verdicts, by the margins of a policy; without torch."""
