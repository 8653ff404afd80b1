"""Training pictures: drawing, fetching and opening them, and making batches of them."""
