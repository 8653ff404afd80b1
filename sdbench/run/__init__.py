"""A suite over models, one record each."""
