"""Structured pruning: fewer layers, neurons, heads and channels; the result is a plain
checkpoint.
"""
