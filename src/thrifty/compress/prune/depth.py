"""Which layers can go: those that change their input least, tried by what the model then says.

One graph holds the whole model, with a mask behind what each layer adds. A shut mask is a layer left
out, so a choice is tried by running the graph, not by building another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.ablation_masks import AblationMasks, MaskedModel
from thrifty.compress.calibration import TapRun
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.weights import float16_weight, table_weight
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

_ADDED = ("self_attn.o_proj", "mlp.down_proj")
CANDIDATES = 0.34
"""The share of layers, by least influence, among which the next to go is looked for."""


@dataclass(frozen=True)
class LayerRemoval:
    """One layer that goes, and how far the model is off once it and those before it are gone."""

    layer: int
    influence: float
    kl_divergence: float


class MaskedLayers:
    """16-bit weights; what each layer adds is multiplied with its mask."""

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
    """How far each layer turns its input: 1 minus the mean cosine of what goes in and what comes out.

    Men et al. 2024, 2403.03853 (block influence). The last layer's output is not measured; it is taken
    for as influential as the most influential of the others.
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
            # The norm's scale is taken out again; its length does not matter to a cosine.
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
    """The `most` layers to go first, in their order. Each is the one whose loss, with those before it
    gone, leaves the model nearest to itself, of the half with the least influence.
    """
    if most == 0:
        return []
    layers = checkpoint.shape.layers
    influence = measure_influence(checkpoint, windows[:2])
    tried = set(np.argsort(influence)[: max(most, round(CANDIDATES * layers))].tolist())
    masks = np.ones(layers, np.float32)
    model = MaskedModel(checkpoint, MaskedLayers(layers), windows, masks)
    runs = sum(len(tried) - step for step in range(most))
    done, found = 0, list[LayerRemoval]()
    for _ in range(most):
        costs = {}
        for layer in sorted(tried):
            masks[layer] = 0
            costs[layer] = model.measure(masks)
            masks[layer] = 1
            done += 1
            on_progress(Progress("layers", done, runs, "trials"))
        best = min(costs, key=lambda layer: costs[layer])
        masks[best] = 0
        tried.discard(best)
        found.append(LayerRemoval(best, float(influence[best]), costs[best]))
    return found
