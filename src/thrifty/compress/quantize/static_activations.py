"""Activations in 8 bits on grids that are fixed beforehand (W8A8).

The engine otherwise rounds what a matrix is fed as it comes, with a scale for each group of columns: near, but the sums
of each group must be scaled apart. With one scale for all that is known beforehand, whole rows are summed in integers,
which is faster. It costs most where a few inputs are far larger than the rest: such matrices are left as
they are. What is fed beyond the largest value of the calibration text is cut off there.

In such a graph the engine takes an embedding table in 8 bits for floats of 32, and a head that shares the table with
it. So the table is in 16 bits, and the head in 8 of its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import Tensors
from thrifty.graphs.weights import float16_weight, int8_bits_per_weight, int8_weight

FloatArray = npt.NDArray[np.float32]

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def find_noise(tensors: Tensors, name: str, largest: FloatArray, squares: FloatArray) -> float:
    """What rounding a matrix's inputs with one scale adds to its outputs, as a share of their energy, where
    columns are taken to be independent.

    Args:
        tensors: Where the matrix is read from.
        name: The matrix.
        largest: The largest magnitude that each column is fed, [columns].
        squares: The mean square of the same, [columns].
    """
    columns = np.square(tensors.read_tensor(f"{name}.weight"), dtype=np.float64).sum(axis=0)
    signal = float(columns @ squares)
    if not signal:
        return float("inf")
    step = float(largest.max()) / 127
    return step**2 / 12 * float(columns.sum()) / signal


def choose_static(noise: Mapping[str, float], limit: float) -> set[str]:
    """The matrices whose outputs lose no more than `limit` of their energy."""
    return {name for name, lost in noise.items() if lost <= limit}


@dataclass(frozen=True)
class OwnHead:
    """Tensors whose head is one of its own, though it may be the embedding table."""

    base: Tensors

    def __contains__(self, name: str) -> bool:
        return name == HEAD or name in self.base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        shared = name == HEAD and HEAD not in self.base
        return self.base.read_tensor(TABLE if shared else name)


class StaticActivationWeights:
    """The weights of a graph in 8 bits, of which some matrices are fed 8 bits on a fixed grid.

    Args:
        largest: For each of these, by name, the largest magnitude that it is fed.
    """

    def __init__(self, largest: Mapping[str, float]) -> None:
        self._largest = largest
        self._rounded: tuple[Any, float, Any] | None = None
        """What was rounded last, up to which magnitude, and what came of it."""
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        if name not in self._largest:
            return op.matmul(x, int8_weight(values), False, True)
        return op.matmul(self._round(x, self._largest[name]), _row_weight(values), False, True)

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return int8_weight(values) if name == HEAD else float16_weight(values)

    def _round(self, x: Any, largest: float) -> Any:
        """Once for all matrices that are fed the same."""
        if self._rounded is None or self._rounded[0] is not x or self._rounded[1] != largest:
            # 256 levels, of which zero is one.
            low, high = (
                op.constant(np.array(end, np.float32)) for end in (-largest * 128 / 127, largest)
            )
            self._rounded = x, largest, op.fake_quantize(x, low, high, low, high, 256)
        return self._rounded[2]


def _row_weight(values: FloatArray) -> Any:
    """`values` ([rows, columns]) in 8 bits with one scale to a row, which is what sums of integers take."""
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    codes = np.clip(np.round(values / scales), -127, 127).astype(np.int8)
    return op.multiply(op.convert(op.constant(codes), "f32"), op.constant(scales))


def count_bits(shapes: Mapping[str, tuple[int, int]], static: Container[str]) -> float:
    """Bits a weight on average, over matrices of so many rows and columns."""
    weights, bits = 0, 0.0
    for name, (rows, columns) in shapes.items():
        each = 8 + 32 / columns if name in static else int8_bits_per_weight([(rows, columns)])
        weights += rows * columns
        bits += rows * columns * each
    return bits / weights
