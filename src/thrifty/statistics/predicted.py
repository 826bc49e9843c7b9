"""A mean from many predictions and a few labels: what a judge says of all, corrected by people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.statistics.asymptotic import mixture_radius, tune_rho

FloatArray = npt.NDArray[np.floating[Any]]

MIN_LABELS = 20
"""With fewer labels the correction's spread cannot be told."""
TUNED_LABELS = 100
"""Fixed before any label is seen, so that the interval stays valid at every look."""


@dataclass(frozen=True)
class PredictedMean:
    """The corrected mean. The interval stays valid however often one looks, in the limit of many
    labels.
    """

    mean: float
    stderr: float
    low: float
    high: float
    predictions: int
    labels: int
    correction: float
    """What the labels added to the mean of the predictions."""


def predicted_mean(
    predictions: FloatArray, labelled: FloatArray, labels: FloatArray, alpha: float = 0.05
) -> PredictedMean:
    """The mean of the labels that all would have.

    Prediction-powered inference (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic, Science 382, 2023,
    example 1): the mean of the predictions plus the mean of what labels differ from them. It is
    right however wrong predictions are; good ones make it narrow. The interval is the Gaussian
    mixture boundary (`asymptotic`) over the labels, narrowest at `TUNED_LABELS`.

    Args:
        predictions: What was predicted of those without a label, shape (n,).
        labelled: What was predicted of those with one, shape (m,).
        labels: Their labels, shape (m,).
        alpha: The chance that the interval ever misses the mean.
    """
    if labelled.shape != labels.shape or labels.ndim != 1 or predictions.ndim != 1:
        raise ValueError(f"shapes {labelled.shape} and {labels.shape} are not pairs")
    if not len(predictions):
        predictions = labelled
    count, known = len(predictions), len(labels)
    if known < MIN_LABELS or count < MIN_LABELS:
        raise ValueError(
            f"{count} predictions and {known} labels are too few; {MIN_LABELS} of each are needed"
        )
    change = labels - labelled
    correction = float(np.mean(change))
    spread = float(np.var(predictions, ddof=1)) / count + float(np.var(change, ddof=1)) / known
    mean = float(np.mean(predictions)) + correction
    radius = float(mixture_radius(known, spread * known, alpha, tune_rho(TUNED_LABELS, alpha)))
    return PredictedMean(
        mean, math.sqrt(spread), mean - radius, mean + radius, count, known, correction
    )
