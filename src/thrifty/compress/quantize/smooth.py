"""A decoder whose activations are easier to round, and which computes the same.

Xiao et al. 2022, 2211.10438 (SmoothQuant): where a column of a matrix is fed large values, its inputs are
divided and its weights multiplied by a factor. Inputs that come out of a norm are divided by the norm's
weights; those of an MLP's last matrix by the rows of the one before; what attention gives out by the rows that
make its values, which several heads of queries share. So nothing is added to the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint, Tensors

FloatArray = npt.NDArray[np.float32]

VERSION = 2
"""Raised when decoders come out otherwise, so that models are made anew."""
MOST = 32.0
"""Times, or its inverse: scales of groups are kept in 16 bits."""


def smooth(
    checkpoint: DecoderCheckpoint, sizes: Mapping[str, FloatArray], power: float
) -> DecoderCheckpoint:
    """The same decoder with other weights. They are made as they are read.

    Args:
        checkpoint: The decoder.
        sizes: For each matrix, how large what its columns are multiplied with is, [columns]: usually, or
            at its largest.
        power: Of the inputs' size in a factor, from 0 to 1; the weights' has the rest.
    """
    tensors, shape = checkpoint.tensors, checkpoint.shape
    columns: dict[str, FloatArray] = {}
    rows: dict[str, FloatArray] = {}

    def take(fed: Sequence[str], source: str, sharing: int = 1) -> None:
        """What `source` gives out is divided; `sharing` heads in a row are fed the same of it."""
        largest = [np.abs(tensors.read_tensor(f"{name}.weight")).max(axis=0) for name in fed]
        inputs, weights = (
            found.reshape(-1, sharing, shape.head_dim if sharing > 1 else 1).max(axis=1)
            for found in (sizes[fed[0]], np.max(largest, axis=0))
        )
        factor = _find_factor(inputs, weights, power)
        spread = np.repeat(factor[:, None], sharing, axis=1).reshape(-1)
        columns.update({f"{name}.weight": spread for name in fed})
        for name in (f"{source}.weight", f"{source}.bias"):
            if name in tensors:
                rows[name] = (1 / factor.reshape(-1)).astype(np.float32)

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        take([f"{attention}{part}_proj" for part in "qkv"], f"{prefix}input_layernorm")
        take([f"{attention}o_proj"], f"{attention}v_proj", sharing=shape.heads // shape.kv_heads)
        take([f"{mlp}gate_proj", f"{mlp}up_proj"], f"{prefix}post_attention_layernorm")
        take([f"{mlp}down_proj"], f"{mlp}up_proj")
    return replace(checkpoint, tensors=_Scaled(tensors, rows, columns))


def _find_factor(inputs: FloatArray, weights: FloatArray, power: float) -> FloatArray:
    """For each column that is fed values of size `inputs` and has weights of at most `weights`, of any shape;
    their geometric mean is one.
    """
    usable = (inputs > 0) & (weights > 0)
    if not usable.any():
        return np.ones_like(weights)
    logs = np.where(
        usable,
        power * np.log(np.where(usable, inputs, 1))
        - (1 - power) * np.log(np.where(usable, weights, 1)),
        0,
    )
    logs = np.where(usable, logs - logs[usable].mean(), 0)
    factor: FloatArray = np.exp(np.clip(logs, -np.log(MOST), np.log(MOST))).astype(np.float32)
    return factor


@dataclass(frozen=True)
class _Scaled:
    """Tensors of which some have their rows or their columns multiplied."""

    base: Tensors
    rows: Mapping[str, FloatArray]
    columns: Mapping[str, FloatArray]

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        found = self.base.read_tensor(name)
        if name in self.columns:
            found = found * self.columns[name]
        if name in self.rows:
            factor = self.rows[name]
            found = found * (factor if found.ndim == 1 else factor[:, None])
        return found
