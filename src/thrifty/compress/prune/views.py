"""Checkpoints that are views of others: some layers left out, some matrices replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray, Tensors

_LAYERS = "model.layers."


class KeptLayers:
    """Tensors with some layers left out; the others are numbered anew."""

    def __init__(self, base: Tensors, kept: Sequence[int], prefix: str = _LAYERS) -> None:
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
    """Tensors of which some were changed."""

    def __init__(self, base: Tensors, changed: Mapping[str, FloatArray]) -> None:
        self._base = base
        self._changed = changed

    def __contains__(self, name: str) -> bool:
        return name in self._changed or name in self._base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        found = self._changed.get(name)
        return self._base.read_tensor(name) if found is None else found


def keep_layers(checkpoint: DecoderCheckpoint, kept: Sequence[int]) -> DecoderCheckpoint:
    """The decoder with these layers alone, in this order."""
    return DecoderCheckpoint(
        replace(checkpoint.shape, layers=len(kept)), KeptLayers(checkpoint.tensors, kept)
    )
