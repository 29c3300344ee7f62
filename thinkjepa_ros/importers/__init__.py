"""Foreign checkpoints into our format, offline: `thinkjepa import`. Besides training the only reader of `.pt`."""
