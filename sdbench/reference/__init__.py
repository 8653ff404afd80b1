"""Statistics of real pictures, with the recipe that made them."""
