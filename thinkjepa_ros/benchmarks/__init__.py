"""How fast the model is, beside other implementations of the same numbers and beside what the machine could do."""
