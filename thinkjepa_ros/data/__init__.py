"""Episodes, simulated and recorded."""
