"""How good a model is: lists of tasks, their judges, and shares of what was right with their intervals."""
