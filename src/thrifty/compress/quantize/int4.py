"""Matrices in 4 bits: on which grid, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from thrifty.graphs.weights import int8_codes

FloatArray = npt.NDArray[np.float32]

LOWEST, HIGHEST = -8, 7


class Grid(StrEnum):
    """Where a group's sixteen values may lie."""

    SYMMETRIC = "symmetric"
    """Multiples of its scale, around zero."""
    ZERO_POINTS = "zero points"
    """Multiples of its scale, around one of the sixteen."""
    OFFSETS = "offsets"
    """Anywhere: also the grid of GGUF's Q4_1, so weights that lie on one stay there."""


@dataclass(frozen=True)
class LowRank:
    """A product of two thin matrices, which is added: [rows, rank] by [rank, columns]."""

    left: FloatArray
    right: FloatArray

    @property
    def bits(self) -> float:
        """Kept in 8 bits, with a scale and a zero point for each row."""
        return sum(8 * part.size + 24 * len(part) for part in (self.left, self.right))

    def multiply(self) -> FloatArray:
        """The product, of the two as 8 bits keep them."""
        product: FloatArray = (
            int8_codes(self.left).dequantize() @ int8_codes(self.right).dequantize()
        )
        return product


@dataclass(frozen=True)
class Int4Codes:
    """A matrix in 4 bits: weight = (code - zero of its group) x scale of its group."""

    codes: npt.NDArray[np.int8]
    """[rows, columns], from -8 to 7."""
    scales: npt.NDArray[np.float16]
    """[rows, columns / group]."""
    zeros: npt.NDArray[np.float16] | None = None
    """As the scales. None: all are 0. Whole numbers from -8 to 7 are zero points; others are offsets."""
    awq_scales: npt.NDArray[np.float16] | None = None
    """[columns]: what the input is multiplied with before the matrix (AWQ). None: nothing."""
    correction: LowRank | None = None
    """What is added to make a part of the error good."""

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def grid(self) -> Grid:
        """Of the codes."""
        if self.zeros is None:
            return Grid.SYMMETRIC
        whole = (
            (self.zeros == np.rint(self.zeros)) & (self.zeros >= LOWEST) & (self.zeros <= HIGHEST)
        )
        return Grid.ZERO_POINTS if whole.all() else Grid.OFFSETS

    @property
    def bits_per_weight(self) -> float:
        """Of everything that is kept."""
        zeros = {Grid.SYMMETRIC: 0, Grid.ZERO_POINTS: 4, Grid.OFFSETS: 16}[self.grid]
        bits = 4 + (16 + zeros) / self.group
        if self.awq_scales is not None:
            bits += 16 / len(self.codes)
        if self.correction is not None:
            bits += self.correction.bits / self.codes.size
        return bits

    def dequantize(self) -> FloatArray:
        """The matrix that all this stands for, [rows, columns]."""
        scales = np.repeat(self.scales.astype(np.float32), self.group, axis=1)
        found: FloatArray = self.codes * scales
        if self.zeros is not None:
            found -= np.repeat(self.zeros.astype(np.float32), self.group, axis=1) * scales
        if self.awq_scales is not None:
            found *= self.awq_scales.astype(np.float32)
        if self.correction is not None:
            found += self.correction.multiply()
        return found


def output_error(weights: FloatArray, found: FloatArray, inputs: FloatArray) -> float:
    """The mean squared error of a layer's outputs, over their mean square: what `found` does in place of
    `weights` [rows, columns], where the mean of x x^T over what it is fed is `inputs` [columns, columns].
    """
    difference = found - weights
    wrong = float(((difference @ inputs) * difference).sum(dtype=np.float64))
    whole = float(((weights @ inputs) * weights).sum(dtype=np.float64))
    return wrong / whole if whole else 0.0
