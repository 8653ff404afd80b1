"""What each choice of a recipe is worth: the same student made in other ways, compared."""
