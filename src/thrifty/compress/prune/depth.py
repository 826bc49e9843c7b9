"""Which layers of a decoder to remove: those whose removal changes its predictions least.

One graph holds the whole model, with a mask on the output of each layer's attention and MLP. A mask
of 0 removes the layer, so testing a removal is one run of the graph instead of building another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.ablation_masks import AblationMasks, MaskedModel
from thrifty.compress.calibration import TapRun
from thrifty.compress.prune.pruner import remove_greedily
from thrifty.compress.prune.report import LayerRemoval
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.weights import float16_weight, table_weight
from thrifty.types import OnProgress, ignore_progress

FloatArray = npt.NDArray[np.float32]

_ADDED = ("self_attn.o_proj", "mlp.down_proj")
CANDIDATES = 0.34
"""The share of layers, those with the least influence, whose removal is tested."""


class MaskedLayers:
    """16-bit weights; what each layer adds to the residual stream is multiplied by its mask."""

    def __init__(self, layers: int) -> None:
        self._masks = AblationMasks(layers)
        self.inputs: list[Any] = [self._masks.input]

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        product = op.matmul(x, float16_weight(values), False, True)
        if not name.endswith(_ADDED):
            return product
        return self._masks.multiply(product, int(name.split(".")[2]))

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return table_weight(values, "none")


def measure_influence(
    checkpoint: DecoderCheckpoint, windows: Sequence[TokenArray]
) -> npt.NDArray[np.float64]:
    """Each layer's block influence: 1 minus the mean cosine similarity of its input and output.

    Men et al. 2024, 2403.03853. The last layer's output is not measured; its influence is taken to
    be the largest of the others.
    """
    layers = checkpoint.shape.layers
    read = checkpoint.tensors.read_tensor
    norms = [read(f"model.layers.{n}.input_layernorm.weight") for n in range(layers)]
    total, count = np.zeros(layers - 1), 0
    run = TapRun(checkpoint)
    for tokens in windows:
        taps = run(tokens)
        before = None
        for layer, norm in enumerate(norms):
            # Undo the norm's scale. The length that it normalizes does not matter to a cosine.
            first = run.first_of[f"model.layers.{layer}.self_attn.q_proj"]
            x = taps[first] / np.where(norm == 0, 1, norm)
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            if before is not None:
                total[layer - 1] += float((before * x).sum())
            before = x
        count += len(tokens)
    influence = 1 - total / max(1, count)
    return np.append(influence, influence.max(initial=0.0))


def rank_layers(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    most: int,
    on_progress: OnProgress = ignore_progress,
) -> list[LayerRemoval]:
    """The first `most` layers to remove, in order, chosen greedily by the model's KL divergence."""
    if most == 0:
        return []
    layers = checkpoint.shape.layers
    influence = measure_influence(checkpoint, windows[:2])
    candidates = set(np.argsort(influence)[: max(most, round(CANDIDATES * layers))].tolist())
    model = MaskedModel(checkpoint, MaskedLayers(layers), windows, np.ones(layers, np.float32))
    removed = remove_greedily(
        candidates, most, lambda gone: model.measure(mask_layers(layers, gone)), on_progress
    )
    return [LayerRemoval(layer, float(influence[layer]), cost) for layer, cost in removed]


def mask_layers(count: int, removed: set[int]) -> FloatArray:
    """Masks for `count` layers: 0 for the removed ones, 1 for the others."""
    masks = np.ones(count, np.float32)
    masks[list(removed)] = 0
    return masks
