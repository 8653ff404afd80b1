"""Training images: drawing, fetching and opening them, and making batches of them."""
