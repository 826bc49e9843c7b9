"""Where a training will end: a power law with an offset, fitted to a held-out loss.

The loss after x tokens is modelled as c + a (1 + x / s)^-b, with c, a >= 0, as in scaling laws
(Hoffmann et al. 2022, 2203.15556, over the data alone). Shapes (s, b) on a grid are weighed by how
well their best c and a explain the curve. The error so grows where a short curve allows many ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEAST_POINTS = 4
EXPONENTS = np.geomspace(0.15, 3.0, 24)
SCALES = np.geomspace(0.02, 3.0, 24)
"""Relative to the tokens of the last point."""
LEAST_NOISE = 0.005
"""The curve's relative deviation from a power law is taken to be at least this."""
DRIFT = 0.02
"""The relative error added for each e-fold beyond the last point: no curve stays a power law."""


def forecast(points: Sequence[tuple[float, float]], tokens: float) -> tuple[float, float] | None:
    """The loss after `tokens`, and its standard error.

    `points` are pairs of tokens and the loss after them, in order. None if there are too few, or if
    the first tokens changed nothing.
    """
    if len(points) < LEAST_POINTS or points[-1][0] <= 0:
        return None
    x = np.array([at for at, _ in points], float)
    y = np.array([value for _, value in points], float)
    if not np.isfinite(y).all() or (y <= 0).any():
        return None
    # Both in units of the last point.
    x, end = x / x[-1], tokens / x[-1]
    predicted, misfit = [], []
    for scale in SCALES:
        for exponent in EXPONENTS:
            shape = (1 + x / scale) ** -exponent
            offset, height = _fit(shape, y)
            predicted.append(offset + height * (1 + end / scale) ** -exponent)
            misfit.append(float(np.sum(((offset + height * shape) / y - 1) ** 2)))
    noise = max(min(misfit) / max(1, len(x) - 3), LEAST_NOISE**2)
    weights = np.exp(-(np.array(misfit) - min(misfit)) / (2 * noise))
    weights /= weights.sum()
    value = float(weights @ predicted)
    spread = float(weights @ (np.array(predicted) - value) ** 2)
    drift = DRIFT * float(np.log(max(1.0, end)))
    return value, float(np.sqrt(spread + (noise + drift**2) * value**2))


def _fit(shape: FloatArray, y: FloatArray) -> tuple[float, float]:
    """The offset and the height, neither below 0, with the least relative squares."""
    ones, shape = 1 / y, shape / y
    (aa, ab), bb = (ones @ ones, ones @ shape), shape @ shape
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        return float(ones.sum() / aa), 0.0
    offset = (bb * ones.sum() - ab * shape.sum()) / determinant
    height = (aa * shape.sum() - ab * ones.sum()) / determinant
    if height < 0:
        return float(ones.sum() / aa), 0.0
    if offset < 0:
        return 0.0, float(shape.sum() / bb)
    return float(offset), float(height)
