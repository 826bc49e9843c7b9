"""The search for ways to a size, and the checkpoint of each: what decoders and encoders share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint
from thrifty.compress.prune.encoder_width import EncoderWidths
from thrifty.compress.prune.report import EncoderLayerRemoval, LayerRemoval
from thrifty.compress.prune.views import keep_layers
from thrifty.compress.prune.width import Widths
from thrifty.errors import CompressionError
from thrifty.types import OnProgress, Progress

CheckpointT = TypeVar("CheckpointT", DecoderCheckpoint, EncoderCheckpoint)
WidthsT = TypeVar("WidthsT", Widths, EncoderWidths)
SampleT = TypeVar("SampleT")

MULTIPLE = 64
"""Widths are multiples of this, which suits kernels; smaller models use smaller multiples."""
ROUNDING = 0.005
"""So much more than the share that was asked for may stay: widths come in steps, and the next
smaller one would lose several times as much."""
LEAST_WIDTH = 0.3
"""No width shrinks below this share of the original."""


@dataclass(frozen=True)
class PruningPlan(Generic[WidthsT]):
    """One way to a size: how many layers are removed, and how wide the others become."""

    layers_removed: int
    widths: WidthsT


class Pruner(ABC, Generic[CheckpointT, WidthsT, SampleT]):
    """Finds plans for a size and makes their checkpoints.

    What the matrices' inputs are is measured over `samples` (tokenized text), once for each number
    of layers.
    """

    def __init__(
        self,
        checkpoint: CheckpointT,
        widths: WidthsT,
        samples: Sequence[SampleT],
        on_progress: OnProgress,
    ) -> None:
        """`widths` are the checkpoint's own."""
        self.checkpoint: CheckpointT = checkpoint
        self.widths: WidthsT = widths
        self.layers = checkpoint.shape.layers
        self.total = self.count(PruningPlan(0, widths))
        self._samples = samples
        self._on_progress = on_progress
        self._inputs: tuple[tuple[int, int], Any] | None = None

    @abstractmethod
    def count(self, plan: PruningPlan[WidthsT]) -> int:
        """The parameters that a plan leaves."""

    @abstractmethod
    def describe(self, plan: PruningPlan[WidthsT]) -> str:
        """A plan in words, for reports."""

    @abstractmethod
    def _list_plans(
        self, target: float, deepest: int | None, *, depth: bool, width: bool
    ) -> Iterator[PruningPlan[WidthsT]]:
        """Plans of at most `target` parameters, those with equally many layers in a row.

        `deepest` is the number of layers whose removal alone is enough; None if no number is.
        """

    @abstractmethod
    def _collect_inputs(self, checkpoint: CheckpointT, samples: Sequence[SampleT]) -> Any: ...

    @abstractmethod
    def _narrow(
        self, checkpoint: CheckpointT, inputs: Any, widths: WidthsT
    ) -> tuple[CheckpointT, dict[str, float]]: ...

    def find_plans(
        self, parameters: float, *, depth: bool, width: bool, target: float | None = None
    ) -> list[PruningPlan[WidthsT]]:
        """Plans that keep at most the share `parameters`, or `ROUNDING` more; where `target` says
        so, at most so many of them. Raises `CompressionError` if none does.
        """
        target = share_of(self.total, parameters) if target is None else target
        deepest = next(
            (n for n in range(1, self.layers) if self.count(PruningPlan(n, self.widths)) <= target),
            None,
        )
        plans = list(self._list_plans(target, deepest, depth=depth, width=width))
        if not plans:
            table = self.checkpoint.shape.vocab_size * self.widths.channels / self.total
            raise CompressionError(
                f"{parameters:.0%} of the parameters cannot be reached: the embedding table alone "
                f"takes {table:.0%}; keep more, and allow both layers and widths to go"
            )
        return plans

    def make(
        self,
        plan: PruningPlan[WidthsT],
        removals: Sequence[LayerRemoval | EncoderLayerRemoval],
        share: float = 1.0,
    ) -> tuple[CheckpointT, dict[str, float]]:
        """A plan's checkpoint, made with a share of the samples, and each matrix's output error."""
        removed = {removal.layer for removal in removals[: plan.layers_removed]}
        kept = [layer for layer in range(self.layers) if layer not in removed]
        shallow = keep_layers(self.checkpoint, kept) if removed else self.checkpoint
        if plan.widths == self.widths:
            return shallow, {}
        samples = self._samples[: max(1, round(share * len(self._samples)))]
        key = (len(removed), len(samples))
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = None  # freed before the next ones are collected
            self._inputs = key, self._collect_inputs(shallow, samples)
        return self._narrow(shallow, self._inputs[1], plan.widths)


def share_of(total: int, parameters: float) -> float:
    """The most parameters of `total` that may stay where the share `parameters` is asked for."""
    return (parameters + ROUNDING) * total


def describe_plan(layers_removed: int, layers: int, widths: dict[str, tuple[int, int]]) -> str:
    """What is kept, such as "9 of 12 layers, 512 of 1536 neurons"; `widths` are (new, old)."""
    parts = [f"{layers - layers_removed} of {layers} layers"] if layers_removed else []
    parts += [f"{new} of {old} {name}" for name, (new, old) in widths.items() if new != old]
    return ", ".join(parts)


def remove_greedily(
    layers: set[int],
    count: int,
    cost: Callable[[set[int]], float],
    on_progress: OnProgress,
) -> list[tuple[int, float]]:
    """Choose `count` of `layers` one by one: each time the layer whose removal costs least.

    `cost` measures the model without a set of layers. Returns the layers in the order of their
    removal, each with the cost of removing it and those before it.
    """
    candidates = set(layers)
    total = sum(len(candidates) - step for step in range(count))
    removed: list[tuple[int, float]] = []
    done = 0
    for _ in range(count):
        costs: dict[int, float] = {}
        for layer in sorted(candidates):
            costs[layer] = cost({layer, *(one for one, _ in removed)})
            done += 1
            on_progress(Progress("layers", done, total, "trials"))
        best = min(costs, key=lambda layer: costs[layer])
        candidates.discard(best)
        removed.append((best, costs[best]))
    return removed


def shrinking_widths(size: int) -> Iterator[int]:
    """`size`, and smaller widths in descending order, in multiples that suit kernels."""
    multiple = MULTIPLE
    while multiple > 8 and size < 8 * multiple:
        multiple //= 2
    yield size
    first = (size - 1) // multiple * multiple
    yield from (n for n in range(first, 0, -multiple) if n >= LEAST_WIDTH * size)
