"""Statistics of real images, with the recipe that made them."""
