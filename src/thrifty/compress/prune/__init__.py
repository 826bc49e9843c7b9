"""Structured pruning: fewer layers, neurons, heads and channels, in a checkpoint that stays plain."""
