"""The loop that makes the next version of a model: what it must pass before it serves."""
