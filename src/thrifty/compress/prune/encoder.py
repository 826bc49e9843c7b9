"""Prune an encoder to a share of its parameters: layers, neurons or both, whichever costs least.

Several ways to reach the size are made and measured on calibration text that none of them was made
from. The one whose embeddings rank pairs of texts most like the full model's is written as a plain
checkpoint. Embeddings keep their width if the size can be reached otherwise, because vector indexes
are built for one width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint, load_encoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.mix import as_mix
from thrifty.compress.prune.encoder_depth import rank_encoder_layers
from thrifty.compress.prune.encoder_inputs import (
    EncoderRun,
    InputStatistics,
    collect_encoder_inputs,
)
from thrifty.compress.prune.encoder_width import (
    EncoderWidths,
    count_encoder_parameters,
    narrow_encoder,
    read_encoder_widths,
)
from thrifty.compress.prune.pruner import Pruner, PruningPlan, describe_plan, shrinking_widths
from thrifty.compress.prune.report import EncoderPruningCandidate, EncoderPruningReport
from thrifty.compress.prune.request import PruningRequest, find_pruned, register
from thrifty.errors import CompressionError
from thrifty.evaluate.embedder import encode_text
from thrifty.evaluate.embeddings import compare_vectors, read_passages
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

WINDOW = 256
"""The most tokens of a text that are used."""
TRIAL_TEXTS = 32
"""How many texts each removal of a layer is tested on."""
SELECTION_TEXTS = 256
"""How many texts candidates are compared on: 32,640 pairs."""
VERSION = 1
"""Increase it when pruning changes, so that models are pruned again."""


def prune_encoder(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    request: PruningRequest,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact, EncoderPruningReport | None]:
    """Prune an encoder's checkpoint, as `prune_decoder` prunes a decoder's. Blocks.

    Raises `CompressionError` and the store's errors.
    """
    request.check(version, artifact)
    recipe = request.recipe(VERSION)
    made = find_pruned(store, artifact, request, recipe)
    if made is not None:
        return *made, None
    assert request.parameters is not None, "checked: an encoder keeps its tokens"
    source = store.folder_of(artifact.id)
    checkpoint = load_encoder(source)
    texts = _read_texts(request, TextTokenizer.load(source), checkpoint.shape.context_length)
    pruner = _EncoderPruner(
        checkpoint, read_encoder_widths(checkpoint), texts.calibration, on_progress
    )
    plans = pruner.find_plans(request.parameters, depth=request.depth, width=request.width)
    most = max(plan.layers_removed for plan in plans)
    removals = rank_encoder_layers(checkpoint, texts.trials, most, on_progress)
    whole = EncoderRun(checkpoint).embed(texts.selection)
    candidates: list[EncoderPruningCandidate] = []
    best: tuple[EncoderCheckpoint, PruningPlan[EncoderWidths], dict[str, float]] | None = None
    for plan in plans:
        found, errors = pruner.make(plan, removals)
        agreement = compare_vectors(EncoderRun(found).embed(texts.selection), whole)
        assert agreement.rank_correlation is not None
        correlation = agreement.rank_correlation.spearman
        if best is None or correlation > max(one.rank_correlation for one in candidates):
            best = (found, plan, errors)
        cosine = None if agreement.cosine is None else agreement.cosine.mean
        candidates.append(
            EncoderPruningCandidate(pruner.describe(plan), pruner.count(plan), correlation, cosine)
        )
        on_progress(Progress("compare", len(candidates), len(plans), "candidates"))
    assert best is not None
    chosen, plan, errors = best
    report = EncoderPruningReport(
        pruner.total, candidates, max(candidates, key=lambda one: one.rank_correlation),
        removals[: plan.layers_removed], errors,
    )  # fmt: skip
    made = register(
        store, (version, artifact), request.out, recipe, report.to_lineage(),
        lambda target: write_encoder(chosen, source, target), on_progress,
    )  # fmt: skip
    return *made, report


@dataclass(frozen=True)
class _Texts:
    """Tokenized texts of the calibration file; none is in two lists."""

    selection: list[list[int]]
    trials: list[list[int]]
    calibration: list[list[int]]


def _read_texts(request: PruningRequest, tokenizer: TextTokenizer, context: int) -> _Texts:
    mix = as_mix(request.calibration)
    passages = itertools.chain.from_iterable(read_passages(one.path) for one in mix.sources)
    stream = (encode_text(tokenizer, text, min(WINDOW, context)) for text in passages)
    texts = _Texts(
        list(itertools.islice(stream, SELECTION_TEXTS)),
        list(itertools.islice(stream, TRIAL_TEXTS)),
        list(_take_tokens(stream, request.tokens)),
    )
    if not texts.calibration:
        raise CompressionError(
            f"{mix.name} has too few texts: pruning an encoder needs more than "
            f"{SELECTION_TEXTS + TRIAL_TEXTS} for calibration and selection"
        )
    return texts


def _take_tokens(texts: Iterator[list[int]], tokens: int) -> Iterator[list[int]]:
    while tokens > 0 and (text := next(texts, None)) is not None:
        tokens -= len(text)
        yield text


class _EncoderPruner(Pruner[EncoderCheckpoint, EncoderWidths, list[int]]):
    def count(self, plan: PruningPlan[EncoderWidths]) -> int:
        tensors = self.checkpoint.tensors
        segments = len(tensors.read_tensor("embeddings.token_type_embeddings.weight"))
        return count_encoder_parameters(
            self.checkpoint.shape, self.layers - plan.layers_removed, plan.widths,
            segments=segments, pooler="pooler.dense.weight" in tensors,
        )  # fmt: skip

    def describe(self, plan: PruningPlan[EncoderWidths]) -> str:
        new, old = plan.widths, self.widths
        widths = {
            "neurons": (new.neurons, old.neurons),
            "heads": (new.heads, old.heads),
            "channels": (new.channels, old.channels),
        }
        return describe_plan(plan.layers_removed, self.layers, widths)

    def _list_plans(
        self, target: float, deepest: int | None, *, depth: bool, width: bool
    ) -> Iterator[PruningPlan[EncoderWidths]]:
        most = (deepest if deepest is not None else self.layers // 2 + 1) if depth else 1
        steps = range(most) if most <= 6 else sorted({round(most * n / 6) for n in range(6)})
        found: list[PruningPlan[EncoderWidths]] = []
        if width:
            for removed in steps:
                found += itertools.islice(self._fit_neurons(removed, target), 1)
        if depth and deepest is not None:
            found.append(PruningPlan(deepest, self.widths))
        if width and not found:
            for removed in steps:
                found += itertools.islice(self._fit_heads(removed, target), 1)
        yield from found

    def _fit_neurons(self, removed: int, target: float) -> Iterator[PruningPlan[EncoderWidths]]:
        whole = self.widths
        for neurons in itertools.islice(shrinking_widths(whole.neurons), 1, None):
            plan = PruningPlan(removed, replace(whole, neurons=neurons))
            if self.count(plan) <= target:
                yield plan

    def _fit_heads(self, removed: int, target: float) -> Iterator[PruningPlan[EncoderWidths]]:
        """Plans with fewer heads and their channels, and fewer neurons in proportion."""
        whole = self.widths
        for heads in range(whole.heads - 1, whole.heads // 3, -1):
            limit = whole.neurons * heads / whole.heads
            neurons = next((n for n in shrinking_widths(whole.neurons) if n <= limit), None)
            if neurons is not None:
                plan = PruningPlan(removed, EncoderWidths(neurons, heads, whole.head_dim))
                if self.count(plan) <= target:
                    yield plan

    def _collect_inputs(
        self, checkpoint: EncoderCheckpoint, samples: Sequence[list[int]]
    ) -> Mapping[str, InputStatistics]:
        return collect_encoder_inputs(checkpoint, samples, self._on_progress)

    def _narrow(
        self,
        checkpoint: EncoderCheckpoint,
        inputs: Mapping[str, InputStatistics],
        widths: EncoderWidths,
    ) -> tuple[EncoderCheckpoint, dict[str, float]]:
        return narrow_encoder(checkpoint, inputs, widths, self._on_progress)
