"""8-bit activations with static scales (W8A8), or with 7-bit weights beside them (W7A8).

By default the engine quantizes activations dynamically, with a scale for each group of columns.
That is accurate, but the sum of each group has to be scaled on its own. With one scale that is known
beforehand, whole rows are summed as integers, which is faster. It costs most where a few inputs are
much larger than the rest; such matrices are left as they are. Inputs beyond the largest value of the
calibration text are clipped.

Processors without 8-bit dot products add pairs of products of an unsigned and a signed byte in 16
bits, where 255 x 127 x 2 saturates. Weights of 7 bits keep within: 255 x 63 x 2 = 32,130.

In such a graph the engine expands an 8-bit embedding table, and a head that shares it, to float32.
So the table is stored in 16 bits, and the head is an 8-bit matrix of its own.
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
    """The noise that quantizing a matrix's inputs with one scale adds to its outputs, as a share of
    their energy, if columns are independent.

    Args:
        tensors: Where the matrix is read from.
        name: The matrix.
        largest: The largest magnitude of the inputs of each column, [columns].
        squares: The mean square of the inputs of each column, [columns].
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
    """Tensors with a head of its own, though it may equal the embedding table."""

    base: Tensors

    def __contains__(self, name: str) -> bool:
        return name == HEAD or name in self.base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        shared = name == HEAD and HEAD not in self.base
        return self.base.read_tensor(TABLE if shared else name)


class StaticActivationWeights:
    """The 8-bit weights of a graph in which some matrices take 8-bit activations with static scales.

    Args:
        largest: The largest magnitude of the inputs of each of these matrices, by name.
        weight_bits: Of these matrices: 8, or 7 for processors whose 16-bit sums would saturate.
    """

    def __init__(self, largest: Mapping[str, float], weight_bits: int = 8) -> None:
        self._largest = largest
        self._weight_bits = weight_bits
        self._quantized: tuple[Any, float, Any] | None = None
        """The last input, its largest magnitude, and its quantized form."""
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        if name not in self._largest:
            return op.matmul(x, int8_weight(values), False, True)
        quantized = self._quantize(x, self._largest[name])
        return op.matmul(quantized, _row_weight(values, self._weight_bits), False, True)

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return int8_weight(values) if name == HEAD else float16_weight(values)

    def _quantize(self, x: Any, largest: float) -> Any:
        """Once for all matrices with the same input."""
        known = self._quantized
        if known is None or known[0] is not x or known[1] != largest:
            # 256 levels, of which zero is one.
            low, high = (
                op.constant(np.array(end, np.float32)) for end in (-largest * 128 / 127, largest)
            )
            known = self._quantized = x, largest, op.fake_quantize(x, low, high, low, high, 256)
        return known[2]


def _row_weight(values: FloatArray, bits: int) -> Any:
    """`values` ([rows, columns]) in `bits` bits, stored in 8, with one scale for each row: sums of
    integers over a whole row allow no more.
    """
    top = 2 ** (bits - 1) - 1
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(top)
    scales[scales == 0] = 1
    codes = np.clip(np.round(values / scales), -top, top).astype(np.int8)
    return op.multiply(op.convert(op.constant(codes), "f32"), op.constant(scales))


def count_bits(shapes: Mapping[str, tuple[int, int]], static: Container[str]) -> float:
    """The average number of bits that a weight takes, over matrices of these `shapes`."""
    weights, bits = 0, 0.0
    for name, (rows, columns) in shapes.items():
        each = 8 + 32 / columns if name in static else int8_bits_per_weight([(rows, columns)])
        weights += rows * columns
        bits += rows * columns * each
    return bits / weights
