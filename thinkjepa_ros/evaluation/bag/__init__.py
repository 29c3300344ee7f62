"""`thinkjepa evaluate bag`: what a model is worth on somebody's own recording."""
