"""Training pictures: where they come from, drawn, fetched or opened, and the batches that are made of them."""
