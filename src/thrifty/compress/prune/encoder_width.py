"""A narrower encoder: fewer neurons in its MLPs, and fewer heads together with their channels.

A plain BERT has exactly as many channels as its heads have dimensions, so removing heads removes
channels and makes the embeddings narrower. The remaining weights and biases are updated to minimize
the change of each matrix's outputs over calibration text (`columns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import Tensors
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint, EncoderShape
from thrifty.artifacts.write_encoder import EMBEDDING_TABLES, ENCODER_NORMS
from thrifty.compress.prune.columns import (
    Kept,
    PrunedMatrix,
    choose_channels,
    expand_units,
    keep_columns,
    remove_columns,
)
from thrifty.compress.prune.encoder_inputs import InputStatistics
from thrifty.compress.prune.views import ReplacedTensors
from thrifty.graphs.encoder import OUTPUT
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

_READERS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "intermediate.dense",
)
"""The matrices that read the channels; `attention.output.dense` and `output.dense` write them."""


@dataclass(frozen=True)
class EncoderWidths:
    """The sizes that width pruning changes; they are the same in every layer."""

    neurons: int
    heads: int
    head_dim: int

    @property
    def channels(self) -> int:
        """The width of the embeddings."""
        return self.heads * self.head_dim


def read_encoder_widths(checkpoint: EncoderCheckpoint) -> EncoderWidths:
    """The widths that a checkpoint has."""
    shape = checkpoint.shape
    inner = checkpoint.tensors.read_tensor("encoder.layer.0.intermediate.dense.weight")
    return EncoderWidths(len(inner), shape.heads, shape.hidden_size // shape.heads)


def count_encoder_parameters(
    shape: EncoderShape, layers: int, widths: EncoderWidths, *, segments: int, pooler: bool
) -> int:
    """The number of weights and biases of an encoder with `layers` layers of these widths."""
    hidden = widths.channels
    tables = (shape.vocab_size + shape.context_length + segments) * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden)
    layer = attention + 2 * hidden * widths.neurons + widths.neurons + hidden + 4 * hidden
    return tables + layers * layer + (hidden * hidden + hidden if pooler else 0)


def narrow_encoder(
    checkpoint: EncoderCheckpoint,
    inputs: Mapping[str, InputStatistics],
    widths: EncoderWidths,
    on_progress: OnProgress = ignore_progress,
) -> tuple[EncoderCheckpoint, dict[str, float]]:
    """Narrow an encoder; returns it with the error of each matrix that lost inputs.

    The error is the squared error of a matrix's outputs, relative to their variance.

    Args:
        checkpoint: The encoder to narrow.
        inputs: The result of `collect_encoder_inputs`.
        widths: The new widths, none of them larger than before.
        on_progress: Called after every layer.
    """
    shape, before = checkpoint.shape, read_encoder_widths(checkpoint)
    narrower = _Narrower(checkpoint.tensors, inputs)
    channels = None
    if widths.channels < before.channels:
        channels = choose_channels(_read_readers(checkpoint, inputs), widths.channels)
        for table in EMBEDDING_TABLES:
            narrower.keep_table(f"embeddings.{table}.weight", channels)
        first = inputs["encoder.layer.0.attention.self.query"]
        narrower.keep_norm("embeddings.LayerNorm", first, channels)
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}."
        if widths.neurons < before.neurons:
            kept = narrower.remove(f"{prefix}output.dense", 1, widths.neurons)
            narrower.keep_rows(f"{prefix}intermediate.dense", kept)
        if widths.heads < before.heads:
            kept = narrower.remove(f"{prefix}attention.output.dense", before.head_dim, widths.heads)
            for part in ("query", "key", "value"):
                narrower.keep_rows(f"{prefix}attention.self.{part}", kept, before.head_dim)
        if channels is not None:
            for part in _READERS:
                narrower.keep_inputs(f"{prefix}{part}", channels)
            for part in ("attention.output.dense", "output.dense"):
                narrower.keep_rows(f"{prefix}{part}", channels)
            after = f"encoder.layer.{layer + 1}.attention.self.query"
            outputs = (inputs[f"{prefix}intermediate.dense"], inputs.get(after, inputs[OUTPUT]))
            for norm, output in zip(ENCODER_NORMS, outputs, strict=True):
                narrower.keep_norm(f"{prefix}{norm}", output, channels)
        on_progress(Progress("narrow", layer + 1, shape.layers, "layers"))
    if channels is not None and "pooler.dense.weight" in checkpoint.tensors:
        pooler = checkpoint.tensors.read_tensor("pooler.dense.weight")
        narrower.changed["pooler.dense.weight"] = pooler[np.ix_(channels, channels)]
        narrower.keep_table("pooler.dense.bias", channels)
    new = replace(shape, hidden_size=widths.channels, heads=widths.heads)
    return EncoderCheckpoint(new, narrower.tensors), narrower.errors


class _Narrower:
    """Changes an encoder's tensors and records the errors."""

    def __init__(self, base: Tensors, inputs: Mapping[str, InputStatistics]) -> None:
        self.changed: dict[str, FloatArray] = {}
        self.tensors: Tensors = ReplacedTensors(base, self.changed)
        self.errors: dict[str, float] = {}
        self._inputs = inputs

    def remove(self, name: str, unit: int, keep: int) -> Kept:
        """Keep `keep` of a matrix's units of `unit` columns each; returns which units were kept."""
        weights = self.tensors.read_tensor(f"{name}.weight")
        found = remove_columns(weights, self._inputs[name].covariance, unit, keep)
        self._replace(name, weights, found, expand_units(found.kept, unit))
        return found.kept

    def keep_inputs(self, name: str, kept: Kept) -> None:
        """Keep only these columns of a matrix."""
        weights = self.tensors.read_tensor(f"{name}.weight")
        found = keep_columns(weights, self._inputs[name].covariance, kept)
        self._replace(name, weights, found, kept)

    def keep_rows(self, name: str, kept: Kept, unit: int = 1) -> None:
        """Keep only these units of `unit` rows each of a matrix and its bias."""
        at = expand_units(kept, unit)
        for kind in ("weight", "bias"):
            self.changed[f"{name}.{kind}"] = self.tensors.read_tensor(f"{name}.{kind}")[at]

    def keep_table(self, name: str, kept: Kept) -> None:
        """Keep only these columns of a table or a vector."""
        self.changed[name] = np.ascontiguousarray(self.tensors.read_tensor(name)[..., kept])

    def keep_norm(self, name: str, output: InputStatistics, kept: Kept) -> None:
        """Keep only these channels of a layer norm.

        It then normalizes by the mean and variance of these channels instead of all. Scale and
        shift are adjusted so that the mean and variance of its outputs stay the same.
        """
        scale = self.tensors.read_tensor(f"{name}.weight").astype(np.float64)
        shift = self.tensors.read_tensor(f"{name}.bias").astype(np.float64)
        safe = np.where(scale == 0, 1, scale)[kept]
        # The normalized inputs, before scale and shift.
        mean = (output.mean - shift)[kept] / safe
        second = output.covariance[np.ix_(kept, kept)] / np.outer(safe, safe)
        second = second + np.outer(mean, mean)
        size = np.sqrt(max(float(np.diag(second).mean() - second.mean()), 1e-12))
        self.changed[f"{name}.weight"] = (scale[kept] * size).astype(np.float32)
        moved = (shift[kept] + scale[kept] * float(mean.mean())).astype(np.float32)
        self.changed[f"{name}.bias"] = moved

    def _replace(self, name: str, weights: FloatArray, found: PrunedMatrix, at: Kept) -> None:
        mean = self._inputs[name].mean
        lost = weights.astype(np.float64) @ mean - found.weights.astype(np.float64) @ mean[at]
        bias = self.tensors.read_tensor(f"{name}.bias")
        self.changed[f"{name}.weight"] = found.weights
        self.changed[f"{name}.bias"] = (bias + lost).astype(np.float32)
        self.errors[name] = found.error


def _read_readers(
    checkpoint: EncoderCheckpoint, inputs: Mapping[str, InputStatistics]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Each matrix that reads the channels, and the variance of each of its inputs."""
    for layer in range(checkpoint.shape.layers):
        for part in _READERS:
            name = f"encoder.layer.{layer}.{part}"
            weights = checkpoint.tensors.read_tensor(f"{name}.weight")
            yield weights, np.diag(inputs[name].covariance)
