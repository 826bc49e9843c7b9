"""Smaller models: quantize, prune, and later distill."""
