"""Distillation: a smaller model learns to predict what a larger one predicts."""
