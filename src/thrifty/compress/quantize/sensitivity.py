"""What it costs to keep one matrix in 4 bits, measured: the divergence of the whole model.

One graph holds every matrix in 8 bits and, behind a mask, what changes when it is in 4. With all masks
shut it is the 8-bit model; opening one measures that matrix alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.ablation_masks import AblationMasks, MaskedModel
from thrifty.compress.quantize.weight_formats import Codes
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.weights import float16_weight, int8_weight, table_weight
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]


class MaskedWeights:
    """Every matrix in 8 bits, and behind its mask the difference to its 4 bits."""

    def __init__(self, codes: Mapping[str, Codes]) -> None:
        self._codes = codes
        self.names = list(codes)
        self._masks = AblationMasks(len(codes))
        self.inputs: list[Any] = [self._masks.input]

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        plain = op.matmul(x, int8_weight(values), False, True)
        found = self._codes.get(name)
        if found is None:
            return plain
        change = op.matmul(x, float16_weight(found.dequantize() - values), False, True)
        return op.add(plain, self._masks.multiply(change, self.names.index(name)))

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return table_weight(values, "int8")


def measure_sensitivity(
    checkpoint: DecoderCheckpoint,
    codes: Mapping[str, Codes],
    windows: Sequence[TokenArray],
    kept: KeptAnswers,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, float]:
    """For each matrix: the mean divergence, from the 8-bit model, when it alone is in 4 bits. What is kept is
    not measured again.
    """
    known = {name: kept.find("sensitivity", name) for name in codes}
    missing = [name for name, cost in known.items() if cost is None]
    if not missing:
        return known
    weights = MaskedWeights(codes)
    masks = np.zeros(len(codes), np.float32)
    model = MaskedModel(checkpoint, weights, windows, masks)
    for done, name in enumerate(missing, len(codes) - len(missing) + 1):
        index = weights.names.index(name)
        masks[index] = 1
        known[name] = model.measure(masks)
        masks[index] = 0
        kept.add(known[name], "sensitivity", name)
        on_progress(Progress("sensitivity", done, len(codes), "matrices"))
    return known
