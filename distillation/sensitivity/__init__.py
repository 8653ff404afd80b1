"""Which blocks matter: the output loss of removing each, the best cut within a budget, and a recipe of that cut."""
