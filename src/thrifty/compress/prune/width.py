"""A narrower decoder: fewer neurons in its MLPs, groups of heads, and channels, alike in every layer.

What stays is solved for anew, so that outputs over calibration text change least (`columns`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint, DecoderShape, Tensors
from thrifty.compress.prune.columns import keep_columns, remove_columns
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
"""What reads the channels; `o_proj` and `down_proj` write them."""


@dataclass(frozen=True)
class Widths:
    """The sizes of a decoder that width pruning changes, the same in every layer."""

    neurons: int
    kv_heads: int
    """Groups of heads: each is one head of keys and values with the queries that share it."""
    channels: int


def read_widths(checkpoint: DecoderCheckpoint) -> Widths:
    """As they are."""
    gate = checkpoint.tensors.read_tensor("model.layers.0.mlp.gate_proj.weight")
    return Widths(len(gate), checkpoint.shape.kv_heads, checkpoint.shape.hidden_size)


def count_parameters(shape: DecoderShape, layers: int, widths: Widths, *, tied: bool) -> int:
    """The weights of a decoder of that many layers and those widths, without biases."""
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
    """The decoder at `widths`, and for each matrix whose inputs became fewer, what that costs: the
    squared error of its outputs over their squared size.

    Args:
        checkpoint: What to narrow.
        inputs: The mean of x x^T of each matrix's inputs, as `collect_inputs` gives it.
        widths: None may be larger than it is.
        on_progress: Told of every layer.
    """
    shape, before = checkpoint.shape, read_widths(checkpoint)
    changed: dict[str, FloatArray] = {}
    tensors = ReplacedTensors(checkpoint.tensors, changed)
    errors: dict[str, float] = {}
    channels = None
    if widths.channels < before.channels:
        channels = _choose_channels(checkpoint, inputs, widths.channels)
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
    kept: npt.NDArray[np.int64],
    unit: int,
) -> None:
    at = (kept[:, None] * unit + np.arange(unit)).reshape(-1)
    for kind in ("weight", "bias"):
        full = f"{name}.{kind}"
        if full in tensors:
            changed[full] = tensors.read_tensor(full)[at]


def _choose_channels(
    checkpoint: DecoderCheckpoint, inputs: Mapping[str, FloatArray], keep: int
) -> npt.NDArray[np.int64]:
    """The channels that carry most of what the layers' matrices read, each matrix counting alike."""
    total = np.zeros(checkpoint.shape.hidden_size)
    for layer in range(checkpoint.shape.layers):
        for part in _READERS:
            name = f"model.layers.{layer}.{part}"
            weights = checkpoint.tensors.read_tensor(f"{name}.weight").astype(np.float64)
            carried = (weights**2).sum(axis=0) * np.diag(inputs[name])
            total += carried / max(float(carried.sum()), 1e-30)
    return np.sort(np.argsort(-total, kind="stable")[:keep])


def _keep_channels(
    tensors: Tensors,
    changed: dict[str, FloatArray],
    inputs: Mapping[str, FloatArray],
    prefix: str,
    channels: npt.NDArray[np.int64],
) -> dict[str, float]:
    """One layer with these channels alone; what its matrices lose."""
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
    channels: npt.NDArray[np.int64],
) -> None:
    """The table, the last norm and the head with these channels alone."""
    # What the last norm is fed is not known; the one before it is the nearest.
    last = f"model.layers.{shape.layers - 1}."
    before = tensors.read_tensor(f"{last}post_attention_layernorm.weight")
    scale = _shrink(inputs[f"{last}mlp.gate_proj"], before, channels)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            changed[name] = np.ascontiguousarray(tensors.read_tensor(name)[:, channels])
    changed["model.norm.weight"] = tensors.read_tensor("model.norm.weight")[channels] * scale


def _shrink(moment: FloatArray, scale: FloatArray, channels: npt.NDArray[np.int64]) -> np.float32:
    """A norm divides by the root mean square of the channels that are left, not of all. What makes up
    for it: the root of their share.
    """
    squares = np.diag(moment) / np.where(scale == 0, 1, scale.astype(np.float64)) ** 2
    mean = float(squares.mean())
    return np.float32(np.sqrt(squares[channels].mean() / mean)) if mean else np.float32(1)
