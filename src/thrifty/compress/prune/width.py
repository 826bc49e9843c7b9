"""A narrower decoder: fewer neurons in its MLPs, groups of heads and channels in every layer.

The remaining weights are updated to minimize the change of each matrix's outputs over calibration
text (`columns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint, DecoderShape, Tensors
from thrifty.compress.prune.columns import (
    Kept,
    choose_channels,
    expand_units,
    keep_columns,
    remove_columns,
)
from thrifty.compress.prune.views import ReplacedTensors
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

_READERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)
"""The matrices that read the channels; `o_proj` and `down_proj` write them."""


@dataclass(frozen=True)
class Widths:
    """The sizes that width pruning changes; they are the same in every layer."""

    neurons: int
    kv_heads: int
    """Groups of heads: each is one key-value head and the query heads that share it."""
    channels: int


def read_widths(checkpoint: DecoderCheckpoint) -> Widths:
    """The widths that a checkpoint has."""
    gate = checkpoint.tensors.read_tensor("model.layers.0.mlp.gate_proj.weight")
    return Widths(len(gate), checkpoint.shape.kv_heads, checkpoint.shape.hidden_size)


def count_parameters(shape: DecoderShape, layers: int, widths: Widths, *, tied: bool) -> int:
    """The number of weights, without biases, of a decoder with `layers` layers of these widths."""
    hidden, dim = widths.channels, shape.head_dim
    queries = shape.heads // shape.kv_heads
    attention = 2 * (queries + 1) * widths.kv_heads * dim * hidden
    layer = attention + 3 * hidden * widths.neurons + 2 * hidden
    return (1 if tied else 2) * shape.vocab_size * hidden + layers * layer + hidden


def narrow(
    checkpoint: DecoderCheckpoint,
    inputs: Mapping[str, FloatArray],
    widths: Widths,
    on_progress: OnProgress = ignore_progress,
) -> tuple[DecoderCheckpoint, dict[str, float]]:
    """Narrow a decoder; returns it with the error of each matrix that lost inputs.

    The error is the squared error of a matrix's outputs, relative to their squared size.

    Args:
        checkpoint: The decoder to narrow.
        inputs: The mean of x x^T over each matrix's inputs: the result of `collect_inputs`.
        widths: The new widths, none of them larger than before.
        on_progress: Called after every layer.
    """
    shape, before = checkpoint.shape, read_widths(checkpoint)
    changed: dict[str, FloatArray] = {}
    tensors = ReplacedTensors(checkpoint.tensors, changed)
    errors: dict[str, float] = {}
    channels = None
    if widths.channels < before.channels:
        channels = choose_channels(_read_readers(checkpoint, inputs), widths.channels)
        _keep_ends(tensors, changed, inputs, shape, channels)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        if widths.neurons < before.neurons:
            name = f"{prefix}mlp.down_proj"
            found = remove_columns(
                tensors.read_tensor(f"{name}.weight"), inputs[name], 1, widths.neurons
            )
            changed[f"{name}.weight"], errors[name] = found.weights, found.error
            for part in ("gate_proj", "up_proj"):
                _keep_rows(tensors, changed, f"{prefix}mlp.{part}", found.kept, 1)
        if widths.kv_heads < before.kv_heads:
            name = f"{prefix}self_attn.o_proj"
            queries = shape.heads // shape.kv_heads
            found = remove_columns(
                tensors.read_tensor(f"{name}.weight"), inputs[name],
                queries * shape.head_dim, widths.kv_heads,
            )  # fmt: skip
            changed[f"{name}.weight"], errors[name] = found.weights, found.error
            _keep_rows(
                tensors, changed, f"{prefix}self_attn.q_proj", found.kept, queries * shape.head_dim
            )
            for part in ("k_proj", "v_proj"):
                _keep_rows(
                    tensors, changed, f"{prefix}self_attn.{part}", found.kept, shape.head_dim
                )
        if channels is not None:
            errors |= _keep_channels(tensors, changed, inputs, prefix, channels)
        on_progress(Progress("narrow", layer + 1, shape.layers, "layers"))
    heads = shape.heads // shape.kv_heads * widths.kv_heads
    new = replace(shape, hidden_size=widths.channels, heads=heads, kv_heads=widths.kv_heads)
    return DecoderCheckpoint(new, tensors), errors


def _keep_rows(
    tensors: Tensors,
    changed: dict[str, FloatArray],
    name: str,
    kept: Kept,
    unit: int,
) -> None:
    """Keep only these units of `unit` rows each of a matrix and its bias."""
    at = expand_units(kept, unit)
    for kind in ("weight", "bias"):
        full = f"{name}.{kind}"
        if full in tensors:
            changed[full] = tensors.read_tensor(full)[at]


def _read_readers(
    checkpoint: DecoderCheckpoint, inputs: Mapping[str, FloatArray]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Each matrix that reads the channels, and the mean square of each of its inputs."""
    for layer in range(checkpoint.shape.layers):
        for part in _READERS:
            name = f"model.layers.{layer}.{part}"
            weights = checkpoint.tensors.read_tensor(f"{name}.weight")
            yield weights, np.diag(inputs[name])


def _keep_channels(
    tensors: Tensors,
    changed: dict[str, FloatArray],
    inputs: Mapping[str, FloatArray],
    prefix: str,
    channels: Kept,
) -> dict[str, float]:
    """Keep only these channels in one layer; returns the errors of its matrices."""
    errors = {}
    for part in _READERS:
        name = f"{prefix}{part}"
        found = keep_columns(tensors.read_tensor(f"{name}.weight"), inputs[name], channels)
        changed[f"{name}.weight"], errors[name] = found.weights, found.error
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        _keep_rows(tensors, changed, f"{prefix}{part}", channels, 1)
    for norm, reader in (("input_layernorm", "self_attn.q_proj"),
                         ("post_attention_layernorm", "mlp.gate_proj")):  # fmt: skip
        name = f"{prefix}{norm}.weight"
        scale = tensors.read_tensor(name)
        changed[name] = scale[channels] * _shrink(inputs[f"{prefix}{reader}"], scale, channels)
    return errors


def _keep_ends(
    tensors: Tensors,
    changed: dict[str, FloatArray],
    inputs: Mapping[str, FloatArray],
    shape: DecoderShape,
    channels: Kept,
) -> None:
    """Keep only these channels in the embedding table, the last norm and the head."""
    # The last norm's inputs are not measured; those of the norm before it are the closest.
    last = f"model.layers.{shape.layers - 1}."
    before = tensors.read_tensor(f"{last}post_attention_layernorm.weight")
    scale = _shrink(inputs[f"{last}mlp.gate_proj"], before, channels)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            changed[name] = np.ascontiguousarray(tensors.read_tensor(name)[:, channels])
    changed["model.norm.weight"] = tensors.read_tensor("model.norm.weight")[channels] * scale


def _shrink(moment: FloatArray, scale: FloatArray, channels: Kept) -> np.float32:
    """The factor that corrects an RMS norm's scale after channels were removed.

    The norm then divides by the root mean square of the remaining channels instead of all. The
    factor is the square root of the ratio of the two mean squares.
    """
    squares = np.diag(moment) / np.where(scale == 0, 1, scale.astype(np.float64)) ** 2
    mean = float(squares.mean())
    return np.float32(np.sqrt(squares[channels].mean() / mean)) if mean else np.float32(1)
