"""Which of an encoder's layers can go, tried by what its embeddings then are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import EncoderCheckpoint
from thrifty.compress.ablation_masks import AblationMasks
from thrifty.compress.prune.encoder_inputs import EncoderRun
from thrifty.compress.prune.encoder_report import EncoderLayerRemoval
from thrifty.evaluate.embeddings import cosines
from thrifty.graphs.encoder import OUTPUT
from thrifty.graphs.weights import SchemeWeights
from thrifty.types import OnProgress, Progress, ignore_progress

CANDIDATES = 12
"""So many layers, by least influence, are tried at each step."""


class _MaskedLayers(SchemeWeights):
    """16-bit weights, and a mask for each layer: shut, its input goes on as it came."""

    def __init__(self, layers: int) -> None:
        super().__init__("none")
        self._masks = AblationMasks(layers)
        self.inputs = [self._masks.input]

    def mix(self, layer: int, before: Any, after: Any) -> Any:
        """See `Mix`."""
        return op.add(before, self._masks.multiply(op.subtract(after, before), layer))


def measure_encoder_influence(
    checkpoint: EncoderCheckpoint, texts: Sequence[list[int]]
) -> npt.NDArray[np.float64]:
    """How far each layer turns its input: 1 minus the mean cosine of what goes in and what comes out.

    Men et al. 2024, 2403.03853 (block influence).
    """
    run = EncoderRun(checkpoint, taps=True)
    run.embed(texts)
    behind = [
        *(f"encoder.layer.{n}.attention.self.query" for n in range(1, checkpoint.shape.layers)),
        OUTPUT,
    ]
    return np.array([1 - run.turned[name][0] / run.turned[name][1] for name in behind])


def rank_encoder_layers(
    checkpoint: EncoderCheckpoint,
    texts: Sequence[list[int]],
    most: int,
    on_progress: OnProgress = ignore_progress,
) -> list[EncoderLayerRemoval]:
    """The `most` layers to go first, in their order. Each is the one whose loss, with those before it
    gone, leaves the embeddings nearest to the whole model's.
    """
    if most == 0:
        return []
    layers = checkpoint.shape.layers
    influence = measure_encoder_influence(checkpoint, texts)
    tried = set(np.argsort(influence)[: max(most, CANDIDATES)].tolist())
    weights = _MaskedLayers(layers)
    run = EncoderRun(checkpoint, weights=weights, mix=weights.mix)
    masks = np.ones(layers, np.float32)
    whole = run.embed(texts, {"masks": masks})
    runs = sum(len(tried) - step for step in range(most))
    done, found = 0, list[EncoderLayerRemoval]()
    for _ in range(most):
        alike = {}
        for layer in sorted(tried):
            masks[layer] = 0
            alike[layer] = float(cosines(run.embed(texts, {"masks": masks}), whole).mean())
            masks[layer] = 1
            done += 1
            on_progress(Progress("layers", done, runs, "trials"))
        best = max(alike, key=lambda layer: alike[layer])
        masks[best] = 0
        tried.discard(best)
        found.append(EncoderLayerRemoval(best, float(influence[best]), alike[best]))
    return found
