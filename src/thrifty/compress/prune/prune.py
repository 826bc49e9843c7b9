"""Prune a decoder to a share of its parameters: layers, widths, or both, whichever costs least.

Several ways to the same size are made and measured on calibration text that none was made with; the
one nearest to the whole model is written as a plain checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.calibration import check_no_overlap, collect_inputs
from thrifty.compress.divergence_evaluator import DivergenceEvaluator
from thrifty.compress.prune.depth import LayerRemoval, rank_layers
from thrifty.compress.prune.request import check_request, register
from thrifty.compress.prune.views import keep_layers
from thrifty.compress.prune.width import Widths, count_parameters, narrow, read_widths
from thrifty.engines.openvino.prepare import prepare_model, write_tokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray, digest_file, read_windows
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
CALIBRATION_TOKENS = 32_768
TRIAL_TOKENS = 1024
"""For each trial of leaving a layer out."""
TRIAL_SHARE = 0.25
"""Of the calibration text, that a way to a size is tried with; the best is made with all of it."""
SELECTION_TOKENS = 8192
"""To choose among the ways to a size by."""
MULTIPLE = 64
"""Widths are multiples of this, which kernels are made for; of less where a model is smaller."""
LEAST_WIDTH = 0.3
"""No width goes below this share of what it was."""
VERSION = 2
"""Raised when pruning changes, so that models are pruned anew."""


@dataclass(frozen=True)
class Cut:
    """One way to a size."""

    layers_removed: int
    widths: Widths

    def describe(self, before: Widths, layers: int) -> str:
        """As reports call it."""
        parts = []
        if self.layers_removed:
            parts.append(f"{layers - self.layers_removed} of {layers} layers")
        for name, new, old in (
            ("neurons", self.widths.neurons, before.neurons),
            ("key-value heads", self.widths.kv_heads, before.kv_heads),
            ("channels", self.widths.channels, before.channels),
        ):
            if new != old:
                parts.append(f"{new} of {old} {name}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Tried:
    """What one way to a size came to, on text that it was not made with."""

    way: str
    parameters: int
    kl_divergence: float


@dataclass(frozen=True)
class Pruned:
    """What was pruned, and what each part cost."""

    parameters_before: int
    tried: list[Tried]
    taken: Tried
    layers: list[LayerRemoval]
    """Those that went, in their order."""
    errors: dict[str, float]
    """For each matrix with fewer inputs: squared error of its outputs over their squared size."""

    def as_figures(self) -> dict[str, Any]:
        """As the lineage keeps it."""
        return {
            "way": self.taken.way,
            "parameters": self.taken.parameters,
            "parameters_before": self.parameters_before,
            "kl_divergence_of_taken": self.taken.kl_divergence,
            "calibration_kl_divergence": {one.way: one.kl_divergence for one in self.tried},
            "layers_removed": [asdict(one) for one in self.layers],
            "output_error": self.errors,
        }


def prune_decoder(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    parameters: float,
    *,
    out: str,
    calibration: Path,
    held_out: Path | None = None,
    depth: bool = True,
    width: bool = True,
    tokens: int = CALIBRATION_TOKENS,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact, Pruned | None]:
    """The model with a share of its parameters, registered as `out`; None for the report where it was
    made before. Blocks.

    Args:
        store: Where models are kept.
        version: What to prune: a checkpoint.
        artifact: Its files.
        parameters: The share to keep, above 0 and below 1.
        out: The new model's name.
        calibration: Text to learn from.
        held_out: Text that the result will be judged by, which the other must not hold.
        depth: Whether layers may go.
        width: Whether neurons, heads and channels may.
        tokens: How much of the calibration text is used.
        on_progress: Told of every step.

    Raises `CompressionError`, and what the store raises.
    """
    check_request(version, artifact, parameters, depth=depth, width=width)
    if artifact.description.family is not Family.DECODER:
        raise CompressionError(f"{version.label} is an encoder, which prune_encoder prunes")
    if held_out is not None:
        check_no_overlap(calibration, held_out)
    recipe = {
        "step": "prune", "version": VERSION, "parameters": parameters, "depth": depth,
        "width": width, "tokens": tokens, "calibration_sha256": digest_file(calibration),
    }  # fmt: skip
    made = store.find_made(artifact.id, recipe)
    if made is not None and made[0].name == out:
        return *made, None
    source = store.folder_of(artifact.id)
    checkpoint = load_decoder(source)
    base = prepare_model(store, version, artifact, "none", on_progress)
    tokenizer = TextTokenizer.load(store.folder_of(base[1].id))
    texts = _read_texts(calibration, tokenizer, tokens)
    judge = DivergenceEvaluator(checkpoint, tokenizer, texts.to_choose_by)
    pruner = _Pruner(checkpoint, texts.to_learn_from, on_progress)
    cuts = pruner.find_cuts(parameters, depth=depth, width=width)
    removals = rank_layers(
        checkpoint, texts.of_trials, max(cut.layers_removed for cut in cuts), on_progress
    )
    tried = pruner.try_all(cuts, removals, judge)
    best = min(range(len(cuts)), key=lambda index: tried[index].kl_divergence)
    cut = cuts[best]
    chosen, errors = pruner.make(cut, removals)
    report = Pruned(
        pruner.total, tried, replace(tried[best], kl_divergence=judge.measure(chosen)),
        removals[: cut.layers_removed], errors,
    )  # fmt: skip

    def write(target: Path) -> None:
        write_decoder(chosen, target)
        write_tokenizer(source, target, artifact)

    made = register(
        store, version, artifact, out=out, parameters=pruner.count(cut), recipe=recipe,
        figures=report.as_figures(), write=write, on_progress=on_progress,
    )  # fmt: skip
    return *made, report


@dataclass(frozen=True)
class _Texts:
    """Windows of the calibration text; no two hold the same part of it."""

    to_choose_by: list[TokenArray]
    of_trials: list[TokenArray]
    to_learn_from: list[TokenArray]


def _read_texts(calibration: Path, tokenizer: TextTokenizer, tokens: int) -> _Texts:
    stream = read_windows(calibration, tokenizer, WINDOW, tokens + TRIAL_TOKENS + SELECTION_TOKENS)
    texts = _Texts(
        list(itertools.islice(stream, SELECTION_TOKENS // WINDOW)),
        list(itertools.islice(stream, TRIAL_TOKENS // WINDOW)),
        list(stream),
    )
    if not texts.to_learn_from:
        raise CompressionError(
            f"{calibration} has too little text: pruning needs more than "
            f"{TRIAL_TOKENS + SELECTION_TOKENS} tokens to choose by and to learn from"
        )
    return texts


class _Pruner:
    """Makes a checkpoint of a `Cut`. Inputs are collected once for each number of layers."""

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        windows: Sequence[TokenArray],
        on_progress: OnProgress,
    ) -> None:
        self._checkpoint = checkpoint
        self._windows = windows
        self._on_progress = on_progress
        self.widths = read_widths(checkpoint)
        self._tied = "lm_head.weight" not in checkpoint.tensors
        self.total = self.count(Cut(0, self.widths))
        self._inputs: tuple[tuple[int, int], Any] | None = None

    def count(self, cut: Cut) -> int:
        """The parameters that are left."""
        shape = self._checkpoint.shape
        return count_parameters(
            shape, shape.layers - cut.layers_removed, cut.widths, tied=self._tied
        )

    def find_cuts(self, parameters: float, *, depth: bool, width: bool) -> list[Cut]:
        """Ways to the size, those with equally many layers behind one another.

        Raises `CompressionError` where there is none.
        """
        target = parameters * self.total
        layers, whole = self._checkpoint.shape.layers, self.widths
        deepest = next((n for n in range(1, layers) if self.count(Cut(n, whole)) <= target), None)
        cuts: list[Cut] = []
        steps: Sequence[int] = (0,)
        if depth:
            most = deepest if deepest is not None else layers // 2
            steps = sorted({round(most * share) for share in (0, 0.25, 0.5, 0.75)})
        if width:
            for removed in steps:
                cuts += self._fit_widths(removed, target)
        if depth and deepest is not None:
            cuts.append(Cut(deepest, whole))
        if not cuts:
            raise CompressionError(
                f"{parameters:.0%} of the parameters cannot be reached: the embedding table alone is "
                f"{self._checkpoint.shape.vocab_size * whole.channels / self.total:.0%}; ask for more, "
                "and let layers and widths go both"
            )
        return cuts

    def _fit_widths(self, removed: int, target: float) -> Iterator[Cut]:
        """With so many layers gone: fewer neurons alone, with a group of heads less, and with fewer
        channels in the same measure.
        """
        whole = self.widths
        for heads in sorted({whole.kv_heads, max(1, whole.kv_heads - 1)}, reverse=True):
            for neurons in shrinking(whole.neurons):
                cut = Cut(removed, Widths(neurons, heads, whole.channels))
                if self.count(cut) <= target:
                    if neurons < whole.neurons or heads < whole.kv_heads:
                        yield cut
                    break
        for channels in list(shrinking(whole.channels))[1:]:
            share = channels / whole.channels
            fitting = [n for n in shrinking(whole.neurons) if n <= share * whole.neurons + MULTIPLE]
            narrower = (
                Cut(removed, Widths(fitting[0], whole.kv_heads, channels)) if fitting else None
            )
            if narrower is not None and self.count(narrower) <= target:
                yield narrower
                break

    def try_all(
        self, cuts: Sequence[Cut], removals: Sequence[LayerRemoval], judge: DivergenceEvaluator
    ) -> list[Tried]:
        """What each way comes to, when it learns from a part of the text."""
        tried = []
        for cut in cuts:
            found, _ = self.make(cut, removals, TRIAL_SHARE)
            way = cut.describe(self.widths, self._checkpoint.shape.layers)
            tried.append(Tried(way, self.count(cut), judge.measure(found)))
            self._on_progress(Progress("judge", len(tried), len(cuts), "ways"))
        return tried

    def make(
        self, cut: Cut, removals: Sequence[LayerRemoval], share: float = 1.0
    ) -> tuple[DecoderCheckpoint, dict[str, float]]:
        """The checkpoint by a share of the calibration text, and what each matrix lost."""
        gone = {one.layer for one in removals[: cut.layers_removed]}
        kept = [n for n in range(self._checkpoint.shape.layers) if n not in gone]
        shallow = keep_layers(self._checkpoint, kept) if gone else self._checkpoint
        if cut.widths == self.widths:
            return shallow, {}
        windows = self._windows[: max(1, round(share * len(self._windows)))]
        key = (len(gone), len(windows))
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = None  # freed before the next are collected
            self._inputs = key, collect_inputs(shallow, windows, self._on_progress)
        return narrow(shallow, self._inputs[1], cut.widths, self._on_progress)


def shrinking(size: int) -> Iterator[int]:
    """From a width downwards in multiples that suit kernels."""
    multiple = MULTIPLE
    while multiple > 8 and size < 8 * multiple:
        multiple //= 2
    yield size
    first = (size - 1) // multiple * multiple
    yield from (n for n in range(first, 0, -multiple) if n >= LEAST_WIDTH * size)
