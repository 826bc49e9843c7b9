"""Remove columns from a matrix and update the others so that they compensate for the loss.

The error is that of the matrix's outputs over calibration text; it depends on the inputs only
through the mean of x x^T. Units (single columns, or all columns of a head) are removed one at a
time: each time the one that the others compensate for best, after which they are updated. Hassibi &
Stork 1992 (optimal brain surgeon); for structured pruning of transformers, Kurtic et al. 2023,
2302.04089 (ZipLM).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Kept = npt.NDArray[np.int64]
"""Indexes of what stays, ascending."""

DAMPING = 0.01
"""This share of the mean diagonal is added to the diagonal, so that the matrix is invertible."""
ROUNDS = 16
"""Single columns are removed in about this many rounds, several at a time if many must go."""


@dataclass(frozen=True)
class PrunedMatrix:
    """What is left of a matrix."""

    kept: Kept
    """The units that stay, in their order."""
    weights: FloatArray
    """[rows, columns of the units that stay]."""
    error: float
    """Squared error of the outputs, relative to their squared size."""


def remove_columns(weights: FloatArray, moment: FloatArray, unit: int, keep: int) -> PrunedMatrix:
    """Keep `keep` of a matrix's units of `unit` columns each.

    Args:
        weights: [rows, columns]; not modified.
        moment: The mean of x x^T over the matrix's inputs, [columns, columns].
        unit: Columns in a unit; divides the number of columns.
        keep: How many units stay, at least 1.
    """
    count = weights.shape[1] // unit
    left = np.arange(count)
    w = weights.astype(np.float64)
    inverse = _invert(moment)
    step = max(1, (count - keep) // ROUNDS) if unit == 1 else 1
    while len(left) > keep:
        costs = _unit_costs(w, inverse, unit, left)
        chosen = np.argsort(costs, kind="stable")[: min(step, len(left) - keep)]
        at = expand_units(np.sort(left[chosen]), unit)
        rows = inverse[at]
        solved = np.linalg.solve(rows[:, at], rows)
        # In place: what is removed becomes zero, and copying the rest would take longer.
        w -= w[:, at] @ solved
        inverse -= rows.T @ solved
        left = np.delete(left, chosen)
    new = np.ascontiguousarray(w[:, expand_units(left, unit)])
    error = _error(weights, new, moment, left, unit)
    return PrunedMatrix(left, new.astype(np.float32), error)


def keep_columns(weights: FloatArray, moment: FloatArray, kept: Kept) -> PrunedMatrix:
    """Keep the given columns, updated to compensate for the others by least squares."""
    full = moment.astype(np.float64)
    inner = full[np.ix_(kept, kept)]
    inner = inner + DAMPING * np.mean(np.diag(inner)) * np.eye(len(kept))
    gone = np.setdiff1d(np.arange(weights.shape[1]), kept)
    w = weights.astype(np.float64)
    new = w[:, kept] + w[:, gone] @ np.linalg.solve(inner, full[np.ix_(kept, gone)]).T
    return PrunedMatrix(kept, new.astype(np.float32), _error(weights, new, moment, kept, 1))


def choose_channels(readers: Iterable[tuple[FloatArray, FloatArray]], keep: int) -> Kept:
    """The `keep` channels that contribute most to the outputs of the matrices that read them.

    `readers` are pairs of a matrix [rows, channels] and the mean square of each of its inputs
    [channels]. Every matrix has the same weight.
    """
    total: float | npt.NDArray[np.float64] = 0.0
    for weights, squares in readers:
        contribution = (weights.astype(np.float64) ** 2).sum(axis=0) * squares
        total = total + contribution / max(float(contribution.sum()), 1e-30)
    return np.sort(np.argsort(-np.asarray(total), kind="stable")[:keep])


def expand_units(units: Kept, size: int) -> Kept:
    """The indexes of all rows, or columns, in units of `size` each."""
    return (units[:, None] * size + np.arange(size)).reshape(-1)


def _invert(moment: FloatArray) -> npt.NDArray[np.float64]:
    full = moment.astype(np.float64)
    damped = full + (DAMPING * np.mean(np.diag(full)) + 1e-12) * np.eye(len(full))
    return np.linalg.inv(damped).astype(np.float64)


def _unit_costs(
    w: npt.NDArray[np.float64], inverse: npt.NDArray[np.float64], unit: int, units: Kept
) -> npt.NDArray[np.float64]:
    """For each of `units`, the output error of removing it once the others have compensated."""
    if unit == 1:
        squares = np.einsum("rc,rc->c", w, w)[units]
        costs: npt.NDArray[np.float64] = squares / np.diag(inverse)[units]
        return costs
    found = []
    for number in units:
        part = slice(number * unit, (number + 1) * unit)
        found.append(np.sum(w[:, part].T * np.linalg.solve(inverse[part, part], w[:, part].T)))
    return np.array(found)


def _error(
    before: FloatArray, after: npt.NDArray[np.float64], moment: FloatArray, kept: Kept, unit: int
) -> float:
    change = before.astype(np.float64)
    whole = np.sum((change @ moment) * change)
    change[:, expand_units(kept, unit)] -= after
    return float(np.sum((change @ moment) * change) / whole) if whole else 0.0
