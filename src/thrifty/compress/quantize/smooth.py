"""A decoder whose activations are easier to round, and which computes the same.

Xiao et al. 2022, 2211.10438 (SmoothQuant): where a column of a matrix is fed large values, its inputs are
divided and its weights multiplied by a factor. Inputs that come out of a norm are divided by the norm's
weights; those of an MLP's last matrix by the rows of the one before. So nothing is added to the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint, Tensors

FloatArray = npt.NDArray[np.float32]

MOST = 32.0
"""Times, or its inverse: scales of groups are kept in 16 bits."""


def smooth(
    checkpoint: DecoderCheckpoint, squares: Mapping[str, FloatArray], power: float
) -> DecoderCheckpoint:
    """The same decoder with other weights. They are made as they are read.

    Args:
        checkpoint: The decoder.
        squares: For each matrix, the mean square of what its columns are multiplied with
            (`collect_importance`).
        power: Of the inputs' size in a factor, from 0 to 1; the weights' has the rest.
    """
    tensors = checkpoint.tensors
    columns: dict[str, FloatArray] = {}
    rows: dict[str, FloatArray] = {}

    def take(fed: Sequence[str], source: str) -> None:
        factor = _find_factor(tensors, fed, squares[fed[0]], power)
        columns.update({f"{name}.weight": factor for name in fed})
        for name in (f"{source}.weight", f"{source}.bias"):
            if name in tensors:
                rows[name] = (1 / factor).astype(np.float32)

    for layer in range(checkpoint.shape.layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        take([f"{attention}{part}_proj" for part in "qkv"], f"{prefix}input_layernorm")
        take([f"{mlp}gate_proj", f"{mlp}up_proj"], f"{prefix}post_attention_layernorm")
        take([f"{mlp}down_proj"], f"{mlp}up_proj")
    return replace(checkpoint, tensors=_Scaled(tensors, rows, columns))


def _find_factor(
    tensors: Tensors, fed: Sequence[str], squares: FloatArray, power: float
) -> FloatArray:
    """For each column of the matrices `fed`; their geometric mean is one."""
    largest = np.max(
        [np.abs(tensors.read_tensor(f"{name}.weight")).max(axis=0) for name in fed], axis=0
    )
    inputs = np.sqrt(squares)
    usable = (inputs > 0) & (largest > 0)
    if not usable.any():
        return np.ones_like(largest)
    logs = np.where(
        usable,
        power * np.log(np.where(usable, inputs, 1))
        - (1 - power) * np.log(np.where(usable, largest, 1)),
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
