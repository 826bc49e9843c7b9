"""Weights on a 4-bit grid, column by column, each column's error made good by those that follow.

Frantar et al. 2022, 2210.17323 (GPTQ), with a scale for each group of columns that is searched for the
least error. Errors are weighed by what the layer is fed: the mean of x x^T over calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LOWEST, HIGHEST = -8, 7
DAMPING = 0.01
"""Of the mean diagonal, added to it, so that the matrix can be inverted."""
BLOCK = 128
"""Columns whose errors are passed on together."""
SHRINKS = np.linspace(1.0, 0.70, 13, dtype=np.float32)
"""How much smaller than the largest weight asks for a scale may be."""


@dataclass(frozen=True)
class Int4Codes:
    """A matrix in 4 bits, symmetric: weight = code x scale of its group."""

    codes: npt.NDArray[np.int8]
    """[rows, columns], from -8 to 7."""
    scales: npt.NDArray[np.float16]
    """[rows, columns / group]."""

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def bits_per_weight(self) -> float:
        """Codes and scales."""
        return 4 + 16 / self.group

    def dequantize(self) -> FloatArray:
        """The weights that the codes stand for, [rows, columns]."""
        spread = np.repeat(self.scales.astype(np.float32), self.group, axis=1)
        found: FloatArray = self.codes * spread
        return found


def find_scales(
    weights: FloatArray, importance: FloatArray, shrinks: FloatArray = SHRINKS
) -> npt.NDArray[np.float16]:
    """The scale for each row of a group's weights [rows, group] that errs least, where an error in a
    column counts by `importance` [group]. Its sign lets the extreme weight be -8.
    """
    at = np.abs(weights).argmax(axis=1, keepdims=True)
    extreme = np.take_along_axis(weights, at, axis=1)
    best = np.full(len(weights), np.inf, np.float32)
    chosen = np.ones(len(weights), np.float16)
    for shrink in shrinks:
        scale = (extreme * (shrink / LOWEST)).astype(np.float16)
        scale[scale == 0] = 1
        step = scale.astype(np.float32)
        errors = np.clip(np.rint(weights / step), LOWEST, HIGHEST) * step - weights
        cost = (errors**2 @ importance).astype(np.float32)
        better = cost < best
        best[better] = cost[better]
        chosen[better] = scale[better, 0]
    return chosen


def round_to_nearest(weights: FloatArray, group: int) -> Int4Codes:
    """Each weight on its own, scales by the largest of a group: the plainest way."""
    return quantize(weights, np.eye(weights.shape[1], dtype=np.float32), group, plain=True)


def quantize(
    weights: FloatArray, inputs: FloatArray, group: int, *, plain: bool = False
) -> Int4Codes:
    """`weights` [rows, columns] in 4 bits with `group` columns to a scale.

    Args:
        weights: The matrix; it is not changed.
        inputs: The mean of x x^T over what it is multiplied with, [columns, columns].
        group: Divides the columns.
        plain: Pass no errors on, and search no scales.
    """
    rows, columns = weights.shape
    if columns % group or inputs.shape != (columns, columns):
        raise ValueError(f"{columns} columns, groups of {group}, inputs {inputs.shape}")
    work = weights.astype(np.float32).copy()
    codes = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, columns // group), np.float16)
    shrinks = SHRINKS[:1] if plain else SHRINKS
    diagonal = np.diag(inputs).astype(np.float32)
    upper = None if plain else _factor(inputs)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = np.zeros((rows, last - first), np.float32)
        for column in range(first, last):
            if column % group == 0:
                span = slice(column, column + group)
                importance = diagonal[span] if diagonal[span].any() else np.ones(group, np.float32)
                scales[:, column // group] = find_scales(work[:, span], importance, shrinks)
            scale = scales[:, column // group].astype(np.float32)
            values = work[:, column]
            code = np.clip(np.rint(values / scale), LOWEST, HIGHEST)
            codes[:, column] = code
            if upper is None:
                continue
            error = (values - code * scale) / upper[column, column]
            work[:, column + 1 : last] -= np.outer(error, upper[column, column + 1 : last])
            errors[:, column - first] = error
        if upper is not None:
            work[:, last:] -= errors @ upper[first:last, last:]
    return Int4Codes(codes, scales)


def _factor(inputs: FloatArray) -> FloatArray:
    """The upper Cholesky factor of the inverse. Columns that are never fed count as independent."""
    matrix = inputs.astype(np.float64).copy()
    dead = np.diag(matrix) <= 0
    matrix[dead, dead] = 1
    damping = DAMPING * float(np.mean(np.diag(matrix)))
    for _ in range(8):
        damped = matrix + damping * np.eye(len(matrix))
        try:
            inverse = np.linalg.inv(damped)
            return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
        except np.linalg.LinAlgError:
            damping *= 10
    raise ValueError("the calibration inputs give no matrix that can be inverted")


def output_error(weights: FloatArray, found: Int4Codes, inputs: FloatArray) -> float:
    """The mean squared error of the layer's outputs over calibration text, over their mean square."""
    difference = found.dequantize() - weights
    wrong = float(np.einsum("ij,jk,ik->", difference, inputs, difference, optimize=True))
    whole = float(np.einsum("ij,jk,ik->", weights, inputs, weights, optimize=True))
    return wrong / whole if whole else 0.0
