"""Weights on a 4-bit grid, column by column, each column's error made good by those that follow.

Frantar et al. 2022, 2210.17323 (GPTQ), with a grid for each group of columns that is searched for the
least error. Errors are weighed by what the layer is fed: the mean of x x^T over calibration text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.compress.quantize.int4 import HIGHEST, LOWEST, Grid, Int4Codes

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]

DAMPING = 0.01
"""Of the mean diagonal, added to it, so that the matrix can be inverted."""
BLOCK = 128
"""Columns whose errors are passed on together."""
SHRINKS = np.linspace(1.0, 0.70, 13, dtype=np.float32)
"""How much smaller than the extreme weights ask for a scale may be."""
FARTHEST_ZERO = 2000.0
"""In steps: so far from zero a group's values may lie, that 16 bits still tell them apart."""


def find_grid(
    weights: FloatArray, importance: FloatArray, grid: Grid, shrinks: FloatArray = SHRINKS
) -> tuple[HalfArray, HalfArray]:
    """The scale and the zero for each row of a group's weights [rows, group] that err least, where an
    error in a column counts by `importance` [group].
    """
    at = np.abs(weights).argmax(axis=1, keepdims=True)
    extreme = np.take_along_axis(weights, at, axis=1)[:, 0]
    low, high = weights.min(axis=1), weights.max(axis=1)
    if grid is Grid.ZERO_POINTS:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    middle = (low + high) / 2
    best = np.full(len(weights), np.inf, np.float32)
    scales, zeros = np.ones(len(weights), np.float16), np.zeros(len(weights), np.float16)
    for shrink in shrinks:
        if grid is Grid.SYMMETRIC:
            # The scale's sign lets the extreme weight be -8, which has no mirror image.
            scale = (extreme * (shrink / LOWEST)).astype(np.float16)
        else:
            wide = (high - low) * (shrink / (HIGHEST - LOWEST))
            if grid is Grid.OFFSETS:
                wide = np.maximum(wide, np.abs(middle) / FARTHEST_ZERO)
            scale = wide.astype(np.float16)
        scale[scale == 0] = 1
        step = scale.astype(np.float32)
        zero = np.zeros(len(weights), np.float16)
        if grid is not Grid.SYMMETRIC:
            found = np.where(high > low, (LOWEST + HIGHEST) / 2, 0) - middle / step
            if grid is Grid.ZERO_POINTS:
                found = np.clip(np.rint(found), LOWEST, HIGHEST)
            zero = found.astype(np.float16)
        codes = _round(weights, step[:, None], zero.astype(np.float32)[:, None])
        errors = (codes - zero.astype(np.float32)[:, None]) * step[:, None] - weights
        cost = (errors**2 @ importance).astype(np.float32)
        better = cost < best
        best[better] = cost[better]
        scales[better], zeros[better] = scale[better], zero[better]
    return scales, zeros


def _round(weights: FloatArray, scales: FloatArray, zeros: FloatArray) -> FloatArray:
    codes: FloatArray = np.clip(np.rint(weights / scales + zeros), LOWEST, HIGHEST)
    return codes


def round_to_nearest(weights: FloatArray, group: int, grid: Grid = Grid.SYMMETRIC) -> Int4Codes:
    """Each weight on its own, scales by the extremes of a group: the plainest way."""
    rows, columns = weights.shape
    scales, zeros = find_grid(
        weights.reshape(-1, group), np.ones(group, np.float32), grid, SHRINKS[:1]
    )
    shape = (rows, columns // group)
    scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    spread = [np.repeat(x.astype(np.float32), group, axis=1) for x in (scales, zeros)]
    codes = _round(weights, *spread).astype(np.int8)
    return Int4Codes(codes, scales, None if grid is Grid.SYMMETRIC else zeros)


def quantize(
    weights: FloatArray,
    inputs: FloatArray,
    group: int,
    grid: Grid = Grid.SYMMETRIC,
    *,
    factor: FloatArray | None = None,
) -> Int4Codes:
    """`weights` [rows, columns] in 4 bits with `group` columns to a scale.

    Args:
        weights: The matrix; it is not changed.
        inputs: The mean of x x^T over what it is multiplied with, [columns, columns].
        group: Divides the columns.
        grid: Where a group's values may lie.
        factor: `factor_inputs(inputs)`, where it is known already.
    """
    rows, columns = weights.shape
    if columns % group or inputs.shape != (columns, columns):
        raise ValueError(f"{columns} columns, groups of {group}, inputs {inputs.shape}")
    work = weights.astype(np.float32).copy()
    codes = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, columns // group), np.float16)
    zeros = np.zeros_like(scales)
    diagonal = np.diag(inputs).astype(np.float32)
    upper = factor_inputs(inputs) if factor is None else factor
    step, zero = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = np.zeros((rows, last - first), np.float32)
        for column in range(first, last):
            if column % group == 0:
                at, span = column // group, slice(column, column + group)
                importance = diagonal[span] if diagonal[span].any() else np.ones(group, np.float32)
                scales[:, at], zeros[:, at] = find_grid(work[:, span], importance, grid)
                step, zero = scales[:, at].astype(np.float32), zeros[:, at].astype(np.float32)
            values = work[:, column]
            code = _round(values, step, zero)
            codes[:, column] = code
            error = (values - (code - zero) * step) / upper[column, column]
            work[:, column + 1 : last] -= np.outer(error, upper[column, column + 1 : last])
            errors[:, column - first] = error
        work[:, last:] -= errors @ upper[first:last, last:]
    return Int4Codes(codes, scales, None if grid is Grid.SYMMETRIC else zeros)


def factor_inputs(inputs: FloatArray) -> FloatArray:
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
