"""Ways to 4 bits, tried and measured.

Within a budget of bits, each matrix is tried in every form (`weight_formats.py`), what a form costs the model is told
by what it does to the layer's outputs and by how sensitive the model is to them (`sensitivity.py`), and the
budget goes where it saves most (`budget.py`). The recipes that come of it are then judged as they would be served.
Table and head are kept in 8 bits: they are looked up, not computed with, and cost most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.calibration import collect_inputs
from thrifty.compress.divergence_evaluator import DivergenceEvaluator, RecipeResult
from thrifty.compress.quantize.bit_budget import SLACK, FormatOption, choose
from thrifty.compress.quantize.int4 import Grid, Int4Codes
from thrifty.compress.quantize.sensitivity import measure_sensitivity
from thrifty.compress.quantize.weight_formats import (
    BASE,
    PLAIN,
    WEIGHT_FORMATS,
    Codes,
    FormatError,
    Quantizer,
    WeightFormat,
)
from thrifty.errors import CompressionError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.weights import (
    float16_weight,
    int4_codes,
    int8_weight,
    table_weight,
)
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

SENSITIVITY_WINDOWS = 1
WIDER = {
    "chosen by matrix, symmetric": {Grid.SYMMETRIC},
    "chosen by matrix, with zero points": {Grid.SYMMETRIC, Grid.ZERO_POINTS},
    "chosen by matrix, with offsets": set(Grid),
}
"""Recipes with a choice for each matrix, and the grids that they may take."""
NEAR = 1.05
"""Times the least divergence: an earlier recipe that is no further is taken, as it is computed faster."""
WORTH_OFFSETS = 2.0
"""So many times less must the divergence be with offsets, which cost a third of the speed."""


@dataclass(frozen=True)
class Recipe:
    """One way to 4 bits: every matrix in some form."""

    name: str
    forms: Mapping[str, WeightFormat]
    bits_per_weight: float
    """Over all matrices but the table and the head."""


class Int4Weights:
    """The weights of a graph whose matrices are these; any other is in 8 bits."""

    def __init__(self, codes: Mapping[str, Codes]) -> None:
        self._codes = codes
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        found = self._codes.get(name)
        if not isinstance(found, Int4Codes):
            return op.matmul(x, int8_weight(values), False, True)
        fed = x if found.awq_scales is None else op.multiply(x, _floats(found.awq_scales))
        if found.grid is Grid.OFFSETS:
            y = op.add(op.matmul(fed, int4_codes(found.codes, found.scales), False, True),
                       _multiply_offsets(fed, found))  # fmt: skip
        else:
            kept = int4_codes(found.codes, found.scales, found.zeros)
            y = op.matmul(fed, kept, False, True)
        if found.correction is not None:
            thin = op.matmul(x, int8_weight(found.correction.right), False, True)
            y = op.add(y, op.matmul(thin, int8_weight(found.correction.left), False, True))
        return y

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return table_weight(values, "int8")


def _multiply_offsets(x: Any, found: Int4Codes) -> Any:
    """What the offsets of groups add: each is the same for a whole group, so the group's inputs are
    summed first.
    """
    assert found.zeros is not None
    offsets = -found.zeros.astype(np.float32) * found.scales.astype(np.float32)
    split = op.constant(np.array([0, 0, found.scales.shape[1], found.group]))
    sums = op.reduce_sum(op.reshape(x, split, special_zero=True), op.constant(np.array([3])), False)
    return op.matmul(sums, float16_weight(offsets), False, True)


def _floats(values: npt.NDArray[Any]) -> Any:
    return op.constant(values.astype(np.float32).reshape(1, 1, -1))


def choose_recipe(measured: Sequence[RecipeResult]) -> RecipeResult:
    """The first that is nearly as good as the best; one with offsets only where it is much better than
    any without.
    """
    fast = [one for one in measured if not one.recipe.endswith("offsets")]
    least = min(one.kl_divergence for one in measured)
    if fast and min(one.kl_divergence for one in fast) <= WORTH_OFFSETS * least:
        measured, least = fast, min(one.kl_divergence for one in fast)
    return next(one for one in measured if one.kl_divergence <= NEAR * least)


def try_recipes(
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    judges: Sequence[TokenArray],
    learned: Sequence[TokenArray],
    *,
    bits: float,
    kept: KeptAnswers,
    on_progress: OnProgress = ignore_progress,
) -> tuple[Quantizer, list[Recipe], list[RecipeResult]]:
    """What makes matrices, every recipe that fits the budget, and what each came to. What was measured is
    kept, and not measured again.
    """
    quantizer = Quantizer(checkpoint, collect_inputs(checkpoint, learned, on_progress))
    base = quantizer.make_all(dict.fromkeys(quantizer.names, BASE), on_progress)
    probes = learned[:SENSITIVITY_WINDOWS]
    costs = measure_sensitivity(checkpoint, base, probes, kept, on_progress)
    recipes = _make_recipes(quantizer, _weigh(quantizer, costs, kept, on_progress), bits)
    judge, measured = DivergenceEvaluator(checkpoint, tokenizer, judges), list[RecipeResult]()
    for index, one in enumerate(recipes):
        asked = ("judged", {name: str(form) for name, form in one.forms.items()})
        divergence = kept.find(*asked)
        if divergence is None:
            codes = quantizer.make_all(one.forms, on_progress)
            divergence = judge.measure(checkpoint, Int4Weights(codes))
            kept.add(divergence, *asked)
        measured.append(RecipeResult(one.name, one.bits_per_weight, divergence))
        on_progress(Progress("judge", index + 1, len(recipes), "recipes"))
    return quantizer, recipes, measured


def _weigh(
    quantizer: Quantizer, costs: Mapping[str, float], kept: KeptAnswers, on_progress: OnProgress
) -> dict[str, list[FormatOption[WeightFormat]]]:
    """What each form of each matrix costs the model: as much more or less than the base, whose cost was
    measured, as the outputs of that layer lose.
    """
    choices: dict[str, list[FormatOption[WeightFormat]]] = {}
    for index, name in enumerate(quantizer.names):
        found = kept.find("weighed", name)
        if found is None:
            found = [
                [WEIGHT_FORMATS.index(one.form), one.bits_per_weight, one.error]
                for one in quantizer.weigh(name)
            ]
            kept.add(found, "weighed", name)
        weighed = [FormatError(WEIGHT_FORMATS[form], bits, error) for form, bits, error in found]
        base = next(one.error for one in weighed if one.form == BASE) or 1.0
        size = quantizer.size(name)
        choices[name] = [
            FormatOption(one.form, one.bits_per_weight * size, costs[name] * one.error / base)
            for one in weighed
        ]
        on_progress(Progress("forms", index + 1, len(quantizer.names), "matrices"))
    return choices


def _make_recipes(
    quantizer: Quantizer, choices: Mapping[str, Sequence[FormatOption[WeightFormat]]], bits: float
) -> list[Recipe]:
    """Those that have room in `bits` a weight. Raises `CompressionError` where none has."""
    weights = sum(quantizer.size(name) for name in choices)
    uniform = {name: next(c for c in found if c.form == BASE) for name, found in choices.items()}
    least = sum(one.bits for one in uniform.values()) / weights
    recipes = []
    if least <= bits * (1 + SLACK):
        for label, form in ((f"round to nearest, groups of {BASE.group}", PLAIN),
                            (f"GPTQ, groups of {BASE.group}", BASE)):  # fmt: skip
            recipes.append(Recipe(label, dict.fromkeys(choices, form), least))
    for label, grids in WIDER.items():
        may = {
            name: [one for one in found if one.form.grid is None or one.form.grid in grids]
            for name, found in choices.items()
        }
        try:
            chosen = choose(may, bits * weights)
        except ValueError:
            continue
        spent = sum(one.bits for one in chosen.values()) / weights
        recipes.append(Recipe(label, {name: one.form for name, one in chosen.items()}, spent))
    if not recipes:
        raise CompressionError(
            f"4 bits and their scales take {least:.2f} bits a weight, not {bits:g}"
        )
    return recipes
