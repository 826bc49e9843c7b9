"""How activations are quantized when a graph runs. Imports no OpenVINO."""

from __future__ import annotations

ACTIVATION_GROUP = 64
"""How many activations share a scale when they are multiplied with 8-bit or 4-bit weights. Smaller
groups are more accurate, larger ones faster; the engine's own default is 32.
"""
LEAST_ACTIVATION_GROUP = 32
"""The smallest group that the engine's kernels support."""
