"""Which layers of an encoder to remove: those whose removal changes its embeddings least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint
from thrifty.compress.ablation_masks import AblationMasks
from thrifty.compress.prune.depth import mask_layers
from thrifty.compress.prune.encoder_inputs import EncoderRun
from thrifty.compress.prune.pruner import remove_greedily
from thrifty.compress.prune.report import EncoderLayerRemoval
from thrifty.evaluate.embeddings import cosines
from thrifty.graphs.encoder import OUTPUT
from thrifty.graphs.weights import SchemeWeights
from thrifty.types import OnProgress, ignore_progress

CANDIDATES = 12
"""The removal of this many layers, those with the least influence, is tested."""


class _MaskedLayers(SchemeWeights):
    """16-bit weights and a mask for each layer; a layer with a mask of 0 passes its input
    through.
    """

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
    """Each layer's block influence: 1 minus the mean cosine similarity of its input and output.

    Men et al. 2024, 2403.03853.
    """
    run = EncoderRun(checkpoint, taps=True)
    run.embed(texts)
    outputs = [
        *(f"encoder.layer.{n}.attention.self.query" for n in range(1, checkpoint.shape.layers)),
        OUTPUT,
    ]
    sums = [run.similarity_sums[name] for name in outputs]
    return np.array([1 - total / count for total, count in sums])


def rank_encoder_layers(
    checkpoint: EncoderCheckpoint,
    texts: Sequence[list[int]],
    most: int,
    on_progress: OnProgress = ignore_progress,
) -> list[EncoderLayerRemoval]:
    """The first `most` layers to remove, in order, chosen greedily by the embeddings' cosine."""
    if most == 0:
        return []
    layers = checkpoint.shape.layers
    influence = measure_encoder_influence(checkpoint, texts)
    candidates = set(np.argsort(influence)[: max(most, CANDIDATES)].tolist())
    weights = _MaskedLayers(layers)
    run = EncoderRun(checkpoint, weights=weights, mix=weights.mix)
    whole = run.embed(texts, {"masks": mask_layers(layers, set())})

    def measure(removed: set[int]) -> float:
        embeddings = run.embed(texts, {"masks": mask_layers(layers, removed)})
        return -float(cosines(embeddings, whole).mean())

    removed = remove_greedily(candidates, most, measure, on_progress)
    return [EncoderLayerRemoval(layer, float(influence[layer]), -cost) for layer, cost in removed]
