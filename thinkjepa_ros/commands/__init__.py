"""What `thinkjepa` asks for, one module per group. Nothing heavy is imported before a command runs."""
