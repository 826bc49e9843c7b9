"""The search for the way to a size that costs a decoder least: fewer tokens, layers or widths.

Ways with the same tokens are compared by their divergence from the whole model. Those with different
tokens are compared by how much less probable the same text becomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray
from thrifty.compress.calibration import collect_inputs
from thrifty.compress.divergence_evaluator import DivergenceEvaluator
from thrifty.compress.prune.depth import rank_layers
from thrifty.compress.prune.pruner import (
    MULTIPLE,
    Pruner,
    PruningPlan,
    describe_plan,
    share_of,
    shrinking_widths,
)
from thrifty.compress.prune.report import LayerRemoval, PruningCandidate, PruningReport
from thrifty.compress.prune.request import PruningRequest
from thrifty.compress.prune.vocabulary_plan import (
    VocabularyCut,
    VocabularyPlanner,
    choose_cut,
    make_forecast,
    shrink,
)
from thrifty.compress.prune.width import Widths, count_parameters, narrow, read_widths
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer
from thrifty.text.vocabulary import read_vocabulary
from thrifty.types import OnProgress, Progress

TRIAL_SHARE = 0.25
"""Candidates are made from this share of the calibration text, the chosen one from all of it."""


@dataclass(frozen=True)
class SearchTexts:
    """Windows of the calibration text, without overlap."""

    selection: list[TokenArray]
    trials: list[TokenArray]
    calibration: list[TokenArray]
    held_out: list[tuple[str, TokenArray]]
    """With their sources; on these it is measured how much longer text becomes with fewer tokens.
    """
    counted: dict[str, tuple[float, list[TokenArray]]]
    """By source: its share, and windows in which tokens are counted."""


@dataclass(frozen=True)
class _Tried:
    """One way to the size, and what it was found to cost."""

    level: _Level
    plan: PruningPlan[Widths]
    candidate: PruningCandidate


class PruningSearch:
    """Finds the way to the size that costs least: fewer tokens, layers or widths, or some of
    each.
    """

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        tokenizer: TextTokenizer,
        folder: Path,
        texts: SearchTexts,
        request: PruningRequest,
        on_progress: OnProgress,
    ) -> None:
        """`folder` holds the tokenizer and the chat templates."""
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.texts = texts
        self.request = request
        self.on_progress = on_progress
        self._folder = folder
        self._whole = _Level(self, None)
        self._tried: list[_Tried] = []
        total = self._whole.pruner.total
        self.target = total if request.parameters is None else share_of(total, request.parameters)
        """At most so many parameters may stay."""
        vocabulary = read_vocabulary(tokenizer.tokenizer, tokenizer.vocabulary_size)
        read = [tokens[1:] for tokens in texts.selection]
        length = sum(len(vocabulary[int(one)]) for tokens in read for one in tokens)
        self.bytes_per_token = length / sum(map(len, read))

    def run(self) -> tuple[DecoderCheckpoint, VocabularyCut | None, PruningReport]:
        """The chosen checkpoint, its vocabulary if that is smaller, and the report."""
        cut = self._find_cut()
        if cut is None:
            self._tried = self._whole.try_plans()
        else:
            self._tried += _Level(self, cut).try_plans()
        best = self._choose()
        chosen, errors = best.level.make(best.plan)
        after = best.level.judge.compare(chosen)
        report = PruningReport(
            self._whole.pruner.total, [one.candidate for one in self._tried],
            replace(
                best.candidate, kl_divergence=after.kl_divergence,
                loss=after.loss / self.bytes_per_token,
            ),
            best.level.removals[: best.plan.layers_removed], errors,
            None if best.level.cut is None else best.level.cut.to_lineage(),
        )  # fmt: skip
        return chosen, best.level.cut, report

    def _choose(self) -> _Tried:
        """Of the ways with the same tokens, the nearest to the original; of these, the one that
        loses least.
        """
        nearest: dict[_Level, _Tried] = {}
        for one in self._tried:
            known = nearest.get(one.level)
            if known is None or one.candidate.kl_divergence < known.candidate.kl_divergence:
                nearest[one.level] = one
        return min(nearest.values(), key=lambda one: one.candidate.loss)

    def _find_cut(self) -> VocabularyCut | None:
        """The smaller vocabulary to go on with; None keeps all tokens."""
        request, asked = self.request, self.request.vocabulary
        if not request.may_cut_vocabulary:
            return None
        try:
            planner = VocabularyPlanner(
                self.checkpoint, self.tokenizer, self._folder, self.texts.counted,
                self.texts.held_out,
            )  # fmt: skip
        except CompressionError:
            if asked is None:
                return None  # Nobody asked for it; there are other ways to the size.
            raise
        if isinstance(asked, int | float):
            return planner.cut(planner.count_of(asked))
        if request.parameters is None:
            return planner.find_auto()
        return choose_cut(
            planner, self._whole.pruner.total - self.target, self._measure_cut, self._forecast()
        )

    def _measure_cut(self, cut: VocabularyCut) -> float:
        self.on_progress(Progress("compare vocabularies", cut.tokens, cut.tokens_before, "tokens"))
        return self._whole.judge.measure_loss(shrink(self.checkpoint, cut), cut.narrowed)

    def _forecast(self) -> Callable[[float], float]:
        """What it costs to take a part of the excess from the layers alone."""
        total = self._whole.pruner.total
        try:
            half, whole = (
                self._whole.try_narrowing(target)
                for target in ((total + self.target) / 2, self.target)
            )
        except CompressionError:
            # The layers alone cannot be made so small.
            return lambda part: math.inf if part > 0 else 0.0
        self._tried.append(whole)
        losses = [one.candidate.loss * self.bytes_per_token for one in (half, whole)]
        return make_forecast(*losses)


class _Level:
    """All ways to the size with the same tokens."""

    def __init__(self, search: PruningSearch, cut: VocabularyCut | None) -> None:
        self.cut = cut
        self.removals: list[LayerRemoval] = []
        self._search = search
        self._checkpoint = shrink(search.checkpoint, cut)
        texts = [self._respell(tokens) for tokens in search.texts.calibration]
        widths = read_widths(self._checkpoint)
        self.pruner = _DecoderPruner(self._checkpoint, widths, texts, search.on_progress)

    def try_plans(self) -> list[_Tried]:
        """All ways, measured."""
        search, request = self._search, self._search.request
        if self.pruner.total <= search.target:
            plans = [PruningPlan(0, self.pruner.widths)]
        else:
            plans = self.pruner.find_plans(
                request.parameters or 1.0, depth=request.depth, width=request.width,
                target=search.target,
            )  # fmt: skip
            most = max(plan.layers_removed for plan in plans)
            trials = [self._respell(tokens) for tokens in search.texts.trials]
            self.removals = rank_layers(self._checkpoint, trials, most, search.on_progress)
        tried = []
        for plan in plans:
            tried.append(self._try(plan))
            search.on_progress(Progress("compare", len(tried), len(plans), "candidates"))
        return tried

    def try_narrowing(self, target: float) -> _Tried:
        """The first way with narrower layers. Raises `CompressionError` if there is none."""
        request = self._search.request
        plans = self.pruner.find_plans(
            request.parameters or 1.0, depth=not request.width, width=request.width, target=target
        )
        if not request.width:
            trials = [self._respell(tokens) for tokens in self._search.texts.trials]
            most = plans[0].layers_removed
            self.removals = rank_layers(self._checkpoint, trials, most, self._search.on_progress)
        return self._try(plans[0])

    def make(
        self, plan: PruningPlan[Widths], share: float = 1.0
    ) -> tuple[DecoderCheckpoint, dict[str, float]]:
        """See `Pruner`."""
        return self.pruner.make(plan, self.removals, share)

    @cached_property
    def judge(self) -> DivergenceEvaluator:
        """Compares the ways with the whole model."""
        search = self._search
        return DivergenceEvaluator(
            search.checkpoint, search.tokenizer, search.texts.selection,
            None if self.cut is None else self.cut.narrowed,
        )  # fmt: skip

    def _try(self, plan: PruningPlan[Widths]) -> _Tried:
        found, _ = self.make(plan, TRIAL_SHARE)
        difference = self.judge.compare(found)
        parts = [self.cut.description] if self.cut is not None else []
        parts += [text] if (text := self.pruner.describe(plan)) else []
        loss = difference.loss / self._search.bytes_per_token
        return _Tried(
            self, plan,
            PruningCandidate(
                ", ".join(parts), self.pruner.count(plan), difference.kl_divergence, loss
            ),
        )  # fmt: skip

    def _respell(self, tokens: TokenArray) -> TokenArray:
        return tokens if self.cut is None else self.cut.narrowed.respell(tokens)


class _DecoderPruner(Pruner[DecoderCheckpoint, Widths, TokenArray]):
    def count(self, plan: PruningPlan[Widths]) -> int:
        tied = "lm_head.weight" not in self.checkpoint.tensors
        layers = self.layers - plan.layers_removed
        return count_parameters(self.checkpoint.shape, layers, plan.widths, tied=tied)

    def describe(self, plan: PruningPlan[Widths]) -> str:
        new, old = plan.widths, self.widths
        widths = {
            "neurons": (new.neurons, old.neurons),
            "key-value heads": (new.kv_heads, old.kv_heads),
            "channels": (new.channels, old.channels),
        }
        return describe_plan(plan.layers_removed, self.layers, widths)

    def _list_plans(
        self, target: float, deepest: int | None, *, depth: bool, width: bool
    ) -> Iterator[PruningPlan[Widths]]:
        steps: Sequence[int] = (0,)
        if depth:
            most = deepest if deepest is not None else self.layers // 2
            steps = sorted({round(most * share) for share in (0, 0.25, 0.5, 0.75)})
        if width:
            for removed in steps:
                yield from self._fit_widths(removed, target)
        if depth and deepest is not None:
            yield PruningPlan(deepest, self.widths)

    def _fit_widths(self, removed: int, target: float) -> Iterator[PruningPlan[Widths]]:
        """Plans with `removed` layers less: with fewer neurons, also with one group of heads less,
        and with fewer channels and neurons in proportion.
        """
        whole = self.widths
        for heads in sorted({whole.kv_heads, max(1, whole.kv_heads - 1)}, reverse=True):
            for neurons in shrinking_widths(whole.neurons):
                plan = PruningPlan(removed, Widths(neurons, heads, whole.channels))
                if self.count(plan) <= target:
                    if neurons < whole.neurons or heads < whole.kv_heads:
                        yield plan
                    break
        for channels in list(shrinking_widths(whole.channels))[1:]:
            limit = channels / whole.channels * whole.neurons + MULTIPLE
            neurons = next((n for n in shrinking_widths(whole.neurons) if n <= limit), 0)
            plan = PruningPlan(removed, Widths(neurons, whole.kv_heads, channels))
            if neurons and self.count(plan) <= target:
                yield plan
                break

    def _collect_inputs(
        self, checkpoint: DecoderCheckpoint, samples: Sequence[TokenArray]
    ) -> Mapping[str, FloatArray]:
        return collect_inputs(checkpoint, samples, self._on_progress)

    def _narrow(
        self, checkpoint: DecoderCheckpoint, inputs: Mapping[str, FloatArray], widths: Widths
    ) -> tuple[DecoderCheckpoint, dict[str, float]]:
        return narrow(checkpoint, inputs, widths, self._on_progress)
