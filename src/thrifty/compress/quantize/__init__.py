"""Smaller numbers for the same weights: one file for each form that comes out."""
