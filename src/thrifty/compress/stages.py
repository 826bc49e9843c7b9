"""The stages of a pipeline: which there are, in what order, and what their models are called.

Pruning may be divided into steps. Each takes the same share of what the step before left, and each
is followed by its part of the distillation.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.artifacts import NamedVersion
from thrifty.errors import CompressionError
from thrifty.spec.compress import ALL, CompressSpec, describe_vocabulary
from thrifty.units import format_duration

PRUNE, DISTILL, QUANTIZE = "prune", "distill", "quantize"


@dataclass(frozen=True)
class PlannedStage:
    """One stage, and the name that its model gets."""

    kind: str
    """`prune`, `distill` or `quantize`."""
    out: str
    step: int = 1
    """Which step of pruning and distilling it belongs to, from 1."""
    steps: int = 1

    @property
    def title(self) -> str:
        """The stage in words, such as `prune 1 of 2`."""
        return self.kind if self.steps == 1 else f"{self.kind} {self.step} of {self.steps}"


def list_kinds(compress: CompressSpec) -> list[str]:
    """The kinds of stages that `compress` asks for, in their order."""
    kinds = []
    if compress.prune.is_wanted:
        kinds.append(PRUNE)
    if compress.distill.is_wanted:
        kinds.append(DISTILL)
    if scheme_of(compress) != "none":
        kinds.append(QUANTIZE)
    return kinds


def scheme_of(compress: CompressSpec) -> str:
    """The form of the weights; until it is resolved, `auto` stands for 8 bits."""
    return "int8" if compress.quantize.scheme == "auto" else compress.quantize.scheme


def plan_stages(compress: CompressSpec, base: str) -> list[PlannedStage]:
    """All stages in their order; `base` is the name of the model that they begin with."""
    kinds, steps = list_kinds(compress), compress.prune.count_steps()
    stages: list[PlannedStage] = []
    name = base
    for step in range(1, steps + 1):
        name = base if step == steps else f"{base}-{step}of{steps}"
        if PRUNE in kinds:
            name += "-pruned"
            stages.append(PlannedStage(PRUNE, name, step, steps))
        if DISTILL in kinds:
            name += "-distilled"
            stages.append(PlannedStage(DISTILL, name, step, steps))
    if QUANTIZE in kinds:
        stages.append(PlannedStage(QUANTIZE, f"{name}-{scheme_of(compress)}"))
    if compress.out is not None and stages:
        last = stages[-1]
        stages[-1] = PlannedStage(last.kind, compress.out, last.step, last.steps)
    return stages


def share_after(compress: CompressSpec, step: int) -> float | None:
    """The share of the model's parameters that stays after a step of pruning, from 1; None if
    nothing but tokens goes.
    """
    share, steps = compress.prune.parameters, compress.prune.count_steps()
    return None if share is None else share ** (step / steps)


def find_share(version: NamedVersion, before: float) -> float:
    """The share of the source's parameters that a pruned model has; what it was made of had the
    share `before`.
    """
    figures = version.lineage.figures
    return before * float(figures["parameters"]) / float(figures["parameters_before"])


def require_more(compress: CompressSpec, stage: PlannedStage, share: float) -> None:
    """Raise `CompressionError` if a step of pruning left so little that the next one has nothing to
    take: before its model is trained.
    """
    if stage.step == stage.steps:
        return
    wanted = share_after(compress, stage.step + 1)
    if wanted is not None and share <= wanted:
        raise CompressionError(
            f"this step already leaves {share:.1%} of the parameters, and the next one is to leave "
            f"{wanted:.1%}; set fewer steps (compress.prune.steps)"
        )


def describe_stage(stage: PlannedStage, compress: CompressSpec, teacher: str) -> str:
    """What a stage does, in words."""
    if stage.kind == PRUNE:
        share, tokens = share_after(compress, stage.step), compress.prune.vocabulary
        parts = [] if share is None else [f"{share:.0%} of the parameters"]
        if tokens not in (None, ALL) and stage.step == 1:
            parts.append(describe_vocabulary(tokens))
        return f"to {' and '.join(parts)}"
    if stage.kind == DISTILL:
        tokens, time_s = divide_distillation(compress, stage)
        much = f"{tokens:,} tokens" if tokens is not None else format_duration(time_s or 0.0)
        return f"on {much}, with the teacher {teacher}"
    return f"to {scheme_of(compress)}"


def divide_distillation(
    compress: CompressSpec, stage: PlannedStage
) -> tuple[int | None, float | None]:
    """The tokens, or the seconds, that a stage of distillation has: all steps have as much."""
    tokens, time_s = compress.distill.tokens, compress.distill.time
    return (
        None if tokens is None else max(1, tokens // stage.steps),
        None if time_s is None else time_s / stage.steps,
    )
