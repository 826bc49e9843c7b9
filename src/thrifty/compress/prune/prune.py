"""Prune a decoder to a share of its parameters: layers, widths or both, whichever costs least.

Several ways to reach the size are made and measured on calibration text that none of them was made
from. The one closest to the full model is written as a plain checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray, load_decoder
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.calibration import collect_inputs, count_tokens
from thrifty.compress.divergence_evaluator import DivergenceEvaluator
from thrifty.compress.mix import Text, as_mix, read_tokens
from thrifty.compress.prune.depth import rank_layers
from thrifty.compress.prune.pruner import (
    MULTIPLE,
    Pruner,
    PruningPlan,
    describe_plan,
    shrinking_widths,
)
from thrifty.compress.prune.report import PruningCandidate, PruningReport
from thrifty.compress.prune.request import PruningRequest, find_pruned, register
from thrifty.compress.prune.width import Widths, count_parameters, narrow, read_widths
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
TRIAL_TOKENS = 1024
"""How much text each removal of a layer is tested on."""
TRIAL_SHARE = 0.25
"""Candidates are made from this share of the calibration text, the chosen one from all of it."""
SELECTION_TOKENS = 8192
"""How much text candidates are compared on."""
VERSION = 2
"""Increase it when pruning changes, so that models are pruned again."""


def prune_decoder(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    request: PruningRequest,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact, PruningReport | None]:
    """Prune a decoder's checkpoint and register the result as `request.out`. Blocks.

    The report is None if the model was already made by the same request. Raises `CompressionError`
    and the store's errors.
    """
    request.check(version, artifact)
    if artifact.description.family is not Family.DECODER:
        raise CompressionError(f"{version.label} is an encoder; use prune_encoder")
    recipe = request.recipe(VERSION)
    made = find_pruned(store, artifact, request, recipe)
    if made is not None:
        return *made, None
    source = store.folder_of(artifact.id)
    checkpoint = load_decoder(source)
    base = prepare_model(store, version, artifact, "none", on_progress)
    tokenizer = TextTokenizer.load(store.folder_of(base[1].id))
    texts = _read_texts(request.calibration, tokenizer, request.tokens)
    evaluator = DivergenceEvaluator(checkpoint, tokenizer, texts.selection)
    pruner = _DecoderPruner(checkpoint, read_widths(checkpoint), texts.calibration, on_progress)
    plans = pruner.find_plans(request.parameters, depth=request.depth, width=request.width)
    most = max(plan.layers_removed for plan in plans)
    removals = rank_layers(checkpoint, texts.trials, most, on_progress)
    candidates = []
    for plan in plans:
        found, _ = pruner.make(plan, removals, TRIAL_SHARE)
        divergence = evaluator.measure(found)
        candidates.append(PruningCandidate(pruner.describe(plan), pruner.count(plan), divergence))
        on_progress(Progress("compare", len(candidates), len(plans), "candidates"))
    best = min(range(len(plans)), key=lambda index: candidates[index].kl_divergence)
    chosen, errors = pruner.make(plans[best], removals)
    report = PruningReport(
        pruner.total, candidates,
        replace(candidates[best], kl_divergence=evaluator.measure(chosen)),
        removals[: plans[best].layers_removed], errors,
    )  # fmt: skip

    def write(target: Path) -> None:
        write_decoder(chosen, target)
        write_tokenizer(source, target, artifact)

    made = register(
        store, (version, artifact), request.out, recipe, report.to_lineage(), write, on_progress
    )
    return *made, report


@dataclass(frozen=True)
class _Texts:
    """Windows of the calibration text, without overlap."""

    selection: list[TokenArray]
    trials: list[TokenArray]
    calibration: list[TokenArray]


def _read_texts(calibration: Text, tokenizer: TextTokenizer, tokens: int) -> _Texts:
    stream = read_tokens(calibration, tokenizer, WINDOW, tokens + TRIAL_TOKENS + SELECTION_TOKENS)
    texts = _Texts(
        _take(stream, SELECTION_TOKENS),
        _take(stream, TRIAL_TOKENS),
        list(stream),
    )
    if not texts.calibration:
        raise CompressionError(
            f"{as_mix(calibration).name} has too little text: pruning needs more than "
            f"{TRIAL_TOKENS + SELECTION_TOKENS} tokens for calibration and selection"
        )
    return texts


def _take(stream: Iterator[TokenArray], tokens: int) -> list[TokenArray]:
    """The next windows, until they have so many tokens."""
    taken: list[TokenArray] = []
    while count_tokens(taken) + WINDOW <= tokens and (window := next(stream, None)) is not None:
        taken.append(window)
    return taken


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
