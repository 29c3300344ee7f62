"""Time and hand-over between threads."""
