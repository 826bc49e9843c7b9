"""Which columns of a matrix can go, and what the others must become to make up for them.

The error is that of the matrix's outputs over calibration text, for which the mean of x x^T of its
inputs is all that must be known. Units (single columns, or all columns of a head) go one after the
other, the one first whose loss the rest makes up for best; after each step the rest is solved for
anew. Hassibi & Stork 1992 (optimal brain surgeon); for units of transformers, Kurtic et al. 2023,
2302.04089 (ZipLM).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

DAMPING = 0.01
"""Of the mean diagonal, added to it, so that the matrix can be inverted."""
ROUNDS = 16
"""In about so many steps single columns go: several at a time where many must."""


@dataclass(frozen=True)
class Columns:
    """What is left of a matrix."""

    kept: npt.NDArray[np.int64]
    """The units that stay, in their order."""
    weights: FloatArray
    """[rows, columns of the units that stay]."""
    error: float
    """Squared error of the outputs over their squared size."""


def remove_columns(weights: FloatArray, moment: FloatArray, unit: int, keep: int) -> Columns:
    """`weights` with `keep` of its units of `unit` columns each.

    Args:
        weights: [rows, columns]; it is not changed.
        moment: The mean of x x^T of its inputs, [columns, columns].
        unit: Divides the columns.
        keep: How many units stay, at least 1.
    """
    count = weights.shape[1] // unit
    left = np.arange(count)
    w = weights.astype(np.float64)
    inverse = _invert(moment)
    step = max(1, (count - keep) // ROUNDS) if unit == 1 else 1
    while len(left) > keep:
        costs = _unit_costs(w, inverse, unit)
        gone = np.sort(np.argsort(costs, kind="stable")[: min(step, len(left) - keep)])
        at = (gone[:, None] * unit + np.arange(unit)).reshape(-1)
        stay = np.setdiff1d(np.arange(w.shape[1]), at)
        solved = np.linalg.solve(inverse[np.ix_(at, at)], inverse[np.ix_(at, stay)])
        w = w[:, stay] - w[:, at] @ solved
        inverse = inverse[np.ix_(stay, stay)] - inverse[np.ix_(stay, at)] @ solved
        left = np.delete(left, gone)
    new = np.ascontiguousarray(w, dtype=np.float32)
    return Columns(left, new, _error(weights, w, moment, left, unit))


def keep_columns(weights: FloatArray, moment: FloatArray, kept: npt.NDArray[np.int64]) -> Columns:
    """`weights` with these columns, which make up for the others as well as they can."""
    full = moment.astype(np.float64)
    inner = full[np.ix_(kept, kept)]
    inner = inner + DAMPING * np.mean(np.diag(inner)) * np.eye(len(kept))
    gone = np.setdiff1d(np.arange(weights.shape[1]), kept)
    w = weights.astype(np.float64)
    new = w[:, kept] + w[:, gone] @ np.linalg.solve(inner, full[np.ix_(kept, gone)]).T
    return Columns(kept, new.astype(np.float32), _error(weights, new, moment, kept, 1))


def _invert(moment: FloatArray) -> npt.NDArray[np.float64]:
    full = moment.astype(np.float64)
    damped = full + (DAMPING * np.mean(np.diag(full)) + 1e-12) * np.eye(len(full))
    return np.linalg.inv(damped).astype(np.float64)


def _unit_costs(
    w: npt.NDArray[np.float64], inverse: npt.NDArray[np.float64], unit: int
) -> npt.NDArray[np.float64]:
    """What the outputs lose when a unit goes and the rest makes up for it, for each unit."""
    if unit == 1:
        costs: npt.NDArray[np.float64] = (w**2).sum(axis=0) / np.diag(inverse)
        return costs
    found = []
    for start in range(0, w.shape[1], unit):
        part = slice(start, start + unit)
        found.append(np.sum(w[:, part].T * np.linalg.solve(inverse[part, part], w[:, part].T)))
    return np.array(found)


def _error(
    before: FloatArray,
    after: npt.NDArray[np.float64],
    moment: FloatArray,
    kept: npt.NDArray[np.int64],
    unit: int,
) -> float:
    change = before.astype(np.float64)
    at = (kept[:, None] * unit + np.arange(unit)).reshape(-1)
    whole = np.sum((change @ moment) * change)
    change[:, at] -= after
    return float(np.sum((change @ moment) * change) / whole) if whole else 0.0
