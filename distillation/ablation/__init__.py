"""What each choice in a recipe contributes: variants of the same student, trained and compared."""
