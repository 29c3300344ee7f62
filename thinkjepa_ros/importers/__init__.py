"""Foreign checkpoints into our format, offline: `thinkjepa import`. The only place besides training that reads `.pt`."""
