"""Where a training will end: a power law with an offset, fitted to a held-out loss.

The loss after x tokens is modelled as c + a (1 + x / s)^-b, with c, a >= 0, as in scaling laws
(Hoffmann et al. 2022, 2203.15556, over the data alone). Shapes (s, b) on a grid are weighed by how
well their best c and a explain the curve, so that the error also says how little of a short curve is
known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_POINTS = 4
EXPONENTS = np.geomspace(0.15, 3.0, 24)
SCALES = np.geomspace(0.02, 3.0, 24)
"""Relative to the tokens of the last point."""
LEAST_NOISE = 0.005
"""The curve's relative deviation from a power law is taken to be at least this."""


def forecast(points: Sequence[tuple[float, float]], tokens: float) -> tuple[float, float] | None:
    """The loss after `tokens`, and its standard error.

    `points` are pairs of tokens and the loss after them, in order. None if there are too few, or if
    the first tokens changed nothing.
    """
    if len(points) < LEAST_POINTS or points[-1][0] <= 0:
        return None
    x = np.array([at for at, _ in points], float)
    y = np.array([value for _, value in points], float)
    if not np.isfinite(y).all():
        return None
    # Both in units of the last point.
    x, end = x / x[-1], tokens / x[-1]
    predicted, misfit = [], []
    for scale in SCALES:
        for exponent in EXPONENTS:
            shape = (1 + x / scale) ** -exponent
            offset, height = _fit(shape, y)
            predicted.append(offset + height * (1 + end / scale) ** -exponent)
            misfit.append(float(np.sum((offset + height * shape - y) ** 2)))
    noise = max(min(misfit) / max(1, len(x) - 3), (LEAST_NOISE * y[-1]) ** 2)
    weights = np.exp(-(np.array(misfit) - min(misfit)) / (2 * noise))
    weights /= weights.sum()
    value = float(weights @ predicted)
    spread = float(weights @ (np.array(predicted) - value) ** 2)
    return value, float(np.sqrt(spread + noise))


def _fit(shape: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The offset and the height, neither below 0, with the least squares."""
    centred = shape - shape.mean()
    spread = float(centred @ centred)
    height = max(0.0, float(centred @ y) / spread) if spread > 0 else 0.0
    offset = float(y.mean() - height * shape.mean())
    if offset < 0:
        return 0.0, max(0.0, float(shape @ y) / float(shape @ shape))
    return offset, height
