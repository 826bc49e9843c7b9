"""Checkpoints that are views of others: with some layers left out, or some matrices replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray, Tensors
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint

CheckpointT = TypeVar("CheckpointT", DecoderCheckpoint, EncoderCheckpoint)


class KeptLayers:
    """Tensors of a checkpoint with some layers left out; the others are renumbered."""

    def __init__(self, base: Tensors, kept: Sequence[int], prefix: str) -> None:
        """`prefix` precedes a layer's number in the names of tensors."""
        self._base = base
        self._kept = list(kept)
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        found = self._translate(name)
        return found is not None and found in self._base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        return self._base.read_tensor(self._translate(name) or name)

    def _translate(self, name: str) -> str | None:
        if not name.startswith(self._prefix):
            return name
        number, _, rest = name.removeprefix(self._prefix).partition(".")
        if int(number) >= len(self._kept):
            return None
        return f"{self._prefix}{self._kept[int(number)]}.{rest}"


class ReplacedTensors:
    """Tensors of a checkpoint, some of them replaced."""

    def __init__(self, base: Tensors, changed: Mapping[str, FloatArray]) -> None:
        self._base = base
        self._changed = changed

    def __contains__(self, name: str) -> bool:
        return name in self._changed or name in self._base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        found = self._changed.get(name)
        return self._base.read_tensor(name) if found is None else found


def keep_layers(checkpoint: CheckpointT, kept: Sequence[int]) -> CheckpointT:
    """The model with only these layers, in this order."""
    if isinstance(checkpoint, EncoderCheckpoint):
        tensors = KeptLayers(checkpoint.tensors, kept, "encoder.layer.")
        return EncoderCheckpoint(replace(checkpoint.shape, layers=len(kept)), tensors)
    tensors = KeptLayers(checkpoint.tensors, kept, "model.layers.")
    return DecoderCheckpoint(replace(checkpoint.shape, layers=len(kept)), tensors)
