"""Smaller models: quantize, and later prune and distill."""
