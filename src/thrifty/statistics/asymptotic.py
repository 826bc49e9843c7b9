"""Asymptotic confidence sequences: for means of values without bounds, such as latencies.

They hold in the limit of many observations, as intervals by the central limit theorem do, and at
all times together. Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 52 (2024), arXiv:2103.06476.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


def mixture_radius(
    count: FloatArray | float,
    variance: FloatArray | float,
    alpha: float,
    rho: float,
    *,
    sides: int = 2,
) -> FloatArray:
    """Half the width of the sequence, or the distance of its one end from the mean.

    Gaussian mixture boundary: theorem 2.2, equation 9, for two sides; proposition B.1 for one side.

    Args:
        count: The number of observations, any shape; above 0.
        variance: Their variance as estimated so far, of the same shape.
        alpha: The chance that the sequence ever misses the mean (for one side: on that side).
        rho: From `tune_rho`; chosen before any observation.
        sides: 1 or 2.
    """
    if not 0 < alpha < 1 or rho <= 0 or sides not in (1, 2):
        raise ValueError(f"alpha {alpha}, rho {rho}, sides {sides}: out of range")
    scale = np.asarray(count) * rho**2 + 1
    if sides == 2:
        log_term = np.log(np.sqrt(scale) / alpha)
    else:
        log_term = np.log1p(np.sqrt(scale) / (2 * alpha))
    radius: FloatArray = np.sqrt(
        2 * np.asarray(variance) * scale / (np.asarray(count) * rho) ** 2 * log_term
    )
    return radius


def tune_rho(count: float, alpha: float, *, sides: int = 2) -> float:
    """The parameter that makes the sequence narrowest at `count` observations (equation 11, appendix
    B.2). One side at alpha is as wide as two sides at twice that.
    """
    level = alpha if sides == 2 else min(2 * alpha, 0.999)
    log_level = -2 * np.log(level)
    return float(np.sqrt((log_level + np.log(log_level + 1)) / count))
