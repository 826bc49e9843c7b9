"""Prune an encoder to a share of its parameters: layers, neurons, or both, whichever costs least.

Several ways to the same size are made and measured on calibration text that none was made with; the
one whose embeddings call most alike what the whole model's do is written as a plain checkpoint. The
embeddings keep their width as long as the size can be reached so: indexes are made for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import EncoderCheckpoint, load_encoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.calibration import check_no_overlap
from thrifty.compress.prune.encoder_depth import rank_encoder_layers
from thrifty.compress.prune.encoder_inputs import EncoderRun, collect_encoder_inputs
from thrifty.compress.prune.encoder_report import (
    EncoderLayerRemoval,
    EncoderTried,
    PrunedEncoder,
)
from thrifty.compress.prune.encoder_width import (
    EncoderWidths,
    count_encoder_parameters,
    narrow_encoder,
    read_encoder_widths,
)
from thrifty.compress.prune.prune import CALIBRATION_TOKENS, shrinking
from thrifty.compress.prune.request import check_request, register
from thrifty.compress.prune.views import KeptLayers
from thrifty.errors import CompressionError
from thrifty.evaluate.embedder import encode_text
from thrifty.evaluate.embeddings import compare_vectors, read_passages
from thrifty.evaluate.windows import digest_file
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

WINDOW = 256
"""Tokens of a text, at most."""
TRIAL_TEXTS = 32
"""For each trial of leaving a layer out."""
SELECTION_TEXTS = 256
"""To choose among the ways to a size by: 32,640 pairs."""
VERSION = 1
"""Raised when pruning changes, so that models are pruned anew."""
_LAYERS = "encoder.layer."


@dataclass(frozen=True)
class _Cut:
    layers_removed: int
    widths: EncoderWidths

    def describe(self, before: EncoderWidths, layers: int) -> str:
        parts = []
        if self.layers_removed:
            parts.append(f"{layers - self.layers_removed} of {layers} layers")
        if self.widths.neurons != before.neurons:
            parts.append(f"{self.widths.neurons} of {before.neurons} neurons")
        if self.widths.heads != before.heads:
            parts.append(
                f"{self.widths.heads} of {before.heads} heads, and {self.widths.channels} of "
                f"{before.channels} channels"
            )
        return ", ".join(parts)


def prune_encoder(
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
) -> tuple[NamedVersion, Artifact, PrunedEncoder | None]:
    """The encoder with a share of its parameters, as `prune_decoder` makes decoders. Blocks. Raises
    `CompressionError`, and what the store raises.
    """
    check_request(version, artifact, parameters, depth=depth, width=width)
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
    checkpoint = load_encoder(source)
    texts = _read(calibration, TextTokenizer.load(source), checkpoint.shape.context_length)
    judges = list(itertools.islice(texts, SELECTION_TEXTS))
    trials = list(itertools.islice(texts, TRIAL_TEXTS))
    learned = list(_until(texts, tokens))
    if not learned:
        raise CompressionError(
            f"{calibration} has too few texts: pruning an encoder needs more than "
            f"{SELECTION_TEXTS + TRIAL_TEXTS} to choose by and to learn from"
        )
    pruner = _Pruner(checkpoint, learned, on_progress)
    cuts = pruner.find_cuts(parameters, depth=depth, width=width)
    most = max(cut.layers_removed for cut in cuts)
    removals = rank_encoder_layers(checkpoint, trials, most, on_progress)
    whole = EncoderRun(checkpoint).embed(judges)
    tried: list[EncoderTried] = []
    best: tuple[EncoderCheckpoint, _Cut, dict[str, float]] | None = None
    for index, cut in enumerate(cuts):
        found, errors = pruner.make(cut, removals)
        agreement = compare_vectors(EncoderRun(found).embed(judges), whole)
        assert agreement.rank_correlation is not None
        cosine = None if agreement.cosine is None else agreement.cosine.mean
        way = cut.describe(pruner.widths, checkpoint.shape.layers)
        alike = agreement.rank_correlation.spearman
        if best is None or alike > max(one.rank_correlation for one in tried):
            best = (found, cut, errors)
        tried.append(EncoderTried(way, pruner.count(cut), alike, cosine))
        on_progress(Progress("judge", index + 1, len(cuts), "ways"))
    assert best is not None
    chosen, cut, errors = best
    report = PrunedEncoder(
        pruner.total, tried, max(tried, key=lambda one: one.rank_correlation),
        removals[: cut.layers_removed], errors,
    )  # fmt: skip
    made = register(
        store, version, artifact, out=out, parameters=pruner.count(cut), recipe=recipe,
        figures=report.as_figures(), on_progress=on_progress,
        write=lambda target: write_encoder(chosen, source, target),
    )  # fmt: skip
    return *made, report


class _Pruner:
    """Makes a checkpoint of a `_Cut`. Inputs are collected once for each number of layers."""

    def __init__(
        self,
        checkpoint: EncoderCheckpoint,
        texts: Sequence[list[int]],
        on_progress: OnProgress,
    ) -> None:
        self._checkpoint = checkpoint
        self._texts = texts
        self._on_progress = on_progress
        self.widths = read_encoder_widths(checkpoint)
        table = checkpoint.tensors.read_tensor("embeddings.token_type_embeddings.weight")
        self._segments = len(table)
        self._pooler = "pooler.dense.weight" in checkpoint.tensors
        self.total = self.count(_Cut(0, self.widths))
        self._inputs: tuple[int, Any] | None = None

    def count(self, cut: _Cut) -> int:
        """The parameters that are left."""
        shape = self._checkpoint.shape
        return count_encoder_parameters(
            shape, shape.layers - cut.layers_removed, cut.widths, segments=self._segments,
            pooler=self._pooler,
        )  # fmt: skip

    def find_cuts(self, parameters: float, *, depth: bool, width: bool) -> list[_Cut]:
        """Ways to the size, those with equally many layers behind one another.

        Raises `CompressionError` where there is none.
        """
        target = parameters * self.total
        layers, whole = self._checkpoint.shape.layers, self.widths
        deepest = next((n for n in range(1, layers) if self.count(_Cut(n, whole)) <= target), None)
        most = (deepest if deepest is not None else layers // 2 + 1) if depth else 1
        steps = range(most) if most <= 6 else sorted({round(most * n / 6) for n in range(6)})
        cuts: list[_Cut] = []
        if width:
            for removed in steps:
                cuts += itertools.islice(self._fit_neurons(removed, target), 1)
        if depth and deepest is not None:
            cuts.append(_Cut(deepest, whole))
        if width and not cuts:
            for removed in steps:
                cuts += itertools.islice(self._fit_heads(removed, target), 1)
        if not cuts:
            table = self._checkpoint.shape.vocab_size * whole.channels / self.total
            raise CompressionError(
                f"{parameters:.0%} of the parameters cannot be reached: the embedding table alone is "
                f"{table:.0%}; ask for more, and let layers and widths go both"
            )
        return cuts

    def _fit_neurons(self, removed: int, target: float) -> Iterator[_Cut]:
        whole = self.widths
        for neurons in itertools.islice(shrinking(whole.neurons), 1, None):
            cut = _Cut(removed, replace(whole, neurons=neurons))
            if self.count(cut) <= target:
                yield cut

    def _fit_heads(self, removed: int, target: float) -> Iterator[_Cut]:
        """Fewer heads, with the channels that go with them, and neurons in the same measure."""
        whole = self.widths
        for heads in range(whole.heads - 1, whole.heads // 3, -1):
            wanted = whole.neurons * heads / whole.heads
            neurons = next((n for n in shrinking(whole.neurons) if n <= wanted), None)
            if neurons is not None:
                cut = _Cut(removed, EncoderWidths(neurons, heads, whole.head_dim))
                if self.count(cut) <= target:
                    yield cut

    def make(
        self, cut: _Cut, removals: Sequence[EncoderLayerRemoval]
    ) -> tuple[EncoderCheckpoint, dict[str, float]]:
        """The checkpoint, and what each matrix lost."""
        gone = {one.layer for one in removals[: cut.layers_removed]}
        kept = [n for n in range(self._checkpoint.shape.layers) if n not in gone]
        shallow = self._checkpoint
        if gone:
            shallow = EncoderCheckpoint(
                replace(shallow.shape, layers=len(kept)),
                KeptLayers(shallow.tensors, kept, _LAYERS),
            )
        if cut.widths == self.widths:
            return shallow, {}
        if self._inputs is None or self._inputs[0] != len(gone):
            self._inputs = None  # freed before the next are collected
            inputs = collect_encoder_inputs(shallow, self._texts, self._on_progress)
            self._inputs = (len(gone), inputs)
        return narrow_encoder(shallow, self._inputs[1], cut.widths, self._on_progress)


def _read(path: Path, tokenizer: TextTokenizer, context: int) -> Iterator[list[int]]:
    return (encode_text(tokenizer, text, min(WINDOW, context)) for text in read_passages(path))


def _until(texts: Iterator[list[int]], tokens: int) -> Iterator[list[int]]:
    while tokens > 0 and (text := next(texts, None)) is not None:
        tokens -= len(text)
        yield text
