"""What a recipe may say, what of it fits together, and how it is read from a file: `recipe.Recipe`."""
