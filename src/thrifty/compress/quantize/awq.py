"""Columns that are fed large values, made larger before they are rounded, and their inputs smaller.

Lin et al. 2023, 2306.00978 (AWQ): rounding then errs less where it counts. How much larger is searched,
by what the layer's outputs lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thrifty.compress.quantize.gptq import round_to_nearest
from thrifty.compress.quantize.int4 import output_error

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]

POWERS = (0.2, 0.4, 0.6, 0.8)
"""Of a column's mean magnitude, by which it may be made larger."""
MOST = 64.0
"""Times, or its inverse: beyond that, 16 bits of an input would tell too little."""


def find_awq_scales(
    matrices: Sequence[FloatArray], inputs: FloatArray, group: int
) -> HalfArray | None:
    """What to multiply an input [columns] with, before `matrices` [rows, columns] that are fed it and are
    divided by the same; None where leaving all as it is errs least. `inputs` is the mean of x x^T.
    """
    magnitude = np.sqrt(np.maximum(np.diag(inputs), 0)).astype(np.float64)
    if not (magnitude > 0).any():
        return None
    magnitude = np.maximum(magnitude, magnitude[magnitude > 0].min())
    relative = np.log(magnitude) - np.log(magnitude).mean()
    chosen = None
    least = _measure(matrices, inputs, group, np.ones(len(inputs), np.float16))
    for power in POWERS:
        larger = np.clip(np.exp(power * relative), 1 / MOST, MOST)
        awq_scales = (1 / larger).astype(np.float16)
        error = _measure(matrices, inputs, group, awq_scales)
        if error < least:
            chosen, least = awq_scales, error
    return chosen


def _measure(
    matrices: Sequence[FloatArray], inputs: FloatArray, group: int, awq_scales: HalfArray
) -> float:
    by = awq_scales.astype(np.float32)
    return sum(
        output_error(values, round_to_nearest(values / by, group).dequantize() * by, inputs)
        for values in matrices
    )
