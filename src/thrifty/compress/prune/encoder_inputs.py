"""Statistics of the inputs of an encoder's matrices over calibration text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint
from thrifty.artifacts.write_encoder import ENCODER_MATRICES
from thrifty.evaluate.embedder import Vectors, embed_in_batches
from thrifty.graphs.encoder import OUTPUT, TAP, Mix, build_encoder
from thrifty.graphs.weights import Weights
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

CHUNK = 64
"""Texts between two progress reports."""


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of one matrix's inputs over all tokens."""

    mean: npt.NDArray[np.float64]
    """[columns]."""
    covariance: FloatArray
    """[columns, columns]."""


class EncoderRun:
    """An encoder compiled in float32; the inputs that `weights` and `mix` add are set at each
    run.
    """

    def __init__(
        self,
        checkpoint: EncoderCheckpoint,
        *,
        weights: str | Weights = "none",
        taps: bool = False,
        mix: Mix | None = None,
    ) -> None:
        model = build_encoder(checkpoint, weights, taps=taps, mix=mix)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._width = checkpoint.shape.hidden_size
        self._more: dict[str, Any] = {}
        self.sums: dict[str, tuple[Any, Any]] = {}
        """For each tap: the sum of x and of x x^T."""
        self.similarity_sums: dict[str, tuple[float, int]] = {}
        """For the input of each layer, and the output of the last: its cosine similarity to the
        input of the layer before, summed over tokens, and the number of tokens.
        """
        self._taps = {
            index: name.removeprefix(TAP)
            for index, output in enumerate(self._request.get_compiled_model().outputs)
            for name in output.get_names()
            if name.startswith(TAP)
        }

    def embed(self, texts: Sequence[list[int]], more: Mapping[str, Any] | None = None) -> Vectors:
        """Embeddings, [texts, width]; also adds up the taps."""
        self._more = dict(more or {})
        return embed_in_batches(texts, self._width, self._run)

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Vectors:
        self._request.infer({"input_ids": ids, "attention_mask": mask, **self._more})
        present = mask.astype(bool)
        before: FloatArray | None = None
        for index, name in self._taps.items():
            x = self._request.get_output_tensor(index).data[present]
            first, second = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (
                first + x.sum(axis=0, dtype=np.float64), second + (x.T @ x).astype(np.float64)
            )  # fmt: skip
            if name.endswith(("self.query", OUTPUT)):
                x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
                if before is not None:
                    total, count = self.similarity_sums.get(name, (0.0, 0))
                    self.similarity_sums[name] = (total + float((before * x).sum()), count + len(x))
                before = x
        found: Vectors = self._request.get_tensor("embeddings").data.copy()
        return found


def collect_encoder_inputs(
    checkpoint: EncoderCheckpoint,
    texts: Sequence[list[int]],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, InputStatistics]:
    """The input statistics of each matrix, by name, and of the last layer's output (`OUTPUT`).

    Matrices with the same input share one entry.
    """
    run = EncoderRun(checkpoint, taps=True)
    for first in range(0, len(texts), CHUNK):
        run.embed(texts[first : first + CHUNK])
        on_progress(Progress("calibrate", min(first + CHUNK, len(texts)), len(texts), "texts"))
    count = sum(map(len, texts))
    found: dict[str, InputStatistics] = {}
    for name, (first_sum, second_sum) in run.sums.items():
        mean = first_sum / count
        covariance = second_sum / count - np.outer(mean, mean)
        found[name] = InputStatistics(mean, covariance.astype(np.float32))
    for layer in range(checkpoint.shape.layers):
        prefix = f"encoder.layer.{layer}."
        for part in ("key", "value"):
            found[f"{prefix}attention.self.{part}"] = found[f"{prefix}attention.self.query"]
        assert all(f"{prefix}{name}" in found for name in ENCODER_MATRICES)
    return found
