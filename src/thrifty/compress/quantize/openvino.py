"""Models as OpenVINO IR with 8-bit or 4-bit weights, each chosen by measurement.

All learn from calibration text. INT8 rounds to nearest in groups of columns, of the model as it is or
smoothed (`smooth.py`), whichever loses least. W8A8 and W7A8 also give as many matrices as possible
8-bit activations with static scales (`static_activations.py`). INT4 chooses a format for each matrix
(`recipes.py`). A scheme that this processor would compute wrongly is replaced by the one that the
engine names for it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.compress.calibration import collect_importance, collect_largest, read_calibration
from thrifty.compress.divergence_evaluator import DivergenceEvaluator, RecipeResult
from thrifty.compress.mix import Text, as_mix
from thrifty.compress.overlap import check_no_overlap
from thrifty.compress.quantize import smooth
from thrifty.compress.quantize.recipes import (
    Int4Weights,
    choose_recipe,
    try_recipes,
)
from thrifty.compress.quantize.static_activations import (
    OwnHead,
    StaticActivationWeights,
    choose_static,
    count_bits,
    find_noise,
)
from thrifty.compress.quantize.weight_formats import WEIGHT_FORMATS
from thrifty.engines.base import choose_runnable
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.engines.openvino.processor import SCHEMES, find_features
from thrifty.errors import CompressionError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.weights import int8_bits_per_weight
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
SELECTION_TOKENS = 8192
"""Tokens of calibration text that are kept apart, to choose between recipes by."""
CALIBRATION_TOKENS = {"int8": 8192, "w8a8": 8192, "w7a8": 8192, "int4": 32_768}
"""Smoothing needs only the magnitude of inputs, GPTQ their covariance."""
BITS = 5.0
SMOOTHING = {"int8": (0.5, 0.65), "w8a8": (0.65, 0.8), "w7a8": (0.65, 0.8)}
"""Powers that are tried: static scales need more smoothing."""
STATIC_WEIGHT_BITS = {"w8a8": 8, "w7a8": 7}
"""Bits of the weights beside static activations."""
NOISE = (0.002, 0.004, 0.008)
"""The share of its outputs' energy that a static scale may cost a matrix: each limit is tried."""
MOST_DIVERGENCE = 0.025
"""KL, nats: what static scales may cost a model; about 2.5% of perplexity."""

Made = tuple[NamedVersion, Artifact, list[RecipeResult]]
Outcome = tuple[dict[str, Any], dict[str, Any], list[RecipeResult]]
"""Arguments of `prepare_model` that make the chosen recipe, figures of it, and what was tried."""


@dataclass(frozen=True)
class Material:
    """What a quantized model is made from and chosen by."""

    checkpoint: DecoderCheckpoint
    tokenizer: TextTokenizer
    judged: list[TokenArray]
    """Windows that recipes are compared on."""
    learned: list[TokenArray]
    """Windows that recipes are made with."""


def quantize_openvino(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    *,
    out: str,
    calibration: Text | None = None,
    held_out: Path | None = None,
    bits: float = BITS,
    tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Made:
    """Quantize the weights and register the model as `out`. Blocks.

    Args:
        store: Where models are kept.
        version: The checkpoint to quantize.
        artifact: Its files.
        scheme: `int8`, `w8a8`, `w7a8` or `int4`. Where this processor would compute it wrongly, what
            takes its place is made; the result's lineage and note name it.
        out: The new model's name.
        calibration: Text to learn from. Only `int8` does without, and encoders: by plain rounding.
        held_out: Text that the result will be evaluated on; the calibration text must not hold it.
        bits: For `int4`, the most bits a weight takes on average over all matrices.
        tokens: How much of the calibration text is used. Default: `CALIBRATION_TOKENS`.
        on_progress: Told of every step.

    Raises `CompressionError`, `EngineError`, and what the store raises.
    """
    scheme = choose_runnable(SCHEMES, scheme, find_features(detect_machine()))
    family = artifact.description.family
    encoder = family is not Family.DECODER
    if scheme != "int8" and encoder:
        raise CompressionError(
            f"{family}s are quantized to int8; as {scheme} they are not made yet"
        )
    if scheme != "int8" and calibration is None:
        raise CompressionError(
            f"{scheme} learns from text: name some with --text (thrifty data fetch passages)"
        )
    if encoder or calibration is None:
        return *prepare_model(store, version, artifact, scheme, on_progress, out=out), []
    if held_out is not None:
        check_no_overlap(calibration, held_out)
    tokens = tokens or CALIBRATION_TOKENS[scheme]
    recipe = {
        **make_recipe(scheme), "method": "measured", "tokens": tokens,
        "calibration_sha256": as_mix(calibration).sha256,
    }  # fmt: skip
    if scheme == "int4":
        recipe |= {"bits": bits, "forms": [str(form) for form in WEIGHT_FORMATS]}
    else:
        recipe |= {"smoothing": list(SMOOTHING[scheme]), "smoothing_version": smooth.VERSION}
    if scheme in STATIC_WEIGHT_BITS:
        recipe |= {"noise": list(NOISE), "kl_divergence": MOST_DIVERGENCE}
    made_before = store.find_made(artifact.id, recipe)
    if made_before is not None and made_before[0].name == out:
        return *made_before, []
    checkpoint = load_decoder(store.folder_of(artifact.id))
    base = prepare_model(store, version, artifact, "none", on_progress)
    tokenizer = TextTokenizer.load(store.folder_of(base[1].id))
    windows = read_calibration(
        calibration, tokenizer, WINDOW, judged=SELECTION_TOKENS, learned=tokens
    )
    with (
        store.stage(f"measure {artifact.id} {json.dumps(recipe, sort_keys=True)}") as folder,
        KeptAnswers(folder / "measured.jsonl") as kept,
    ):
        material = Material(checkpoint, tokenizer, *windows)
        if scheme == "int4":
            changes, figures, measured = _make_int4(material, bits, kept, on_progress)
        elif scheme == "int8":
            changes, figures, measured = _make_int8(material, on_progress)
        else:
            changes, figures, measured = _make_static(material, scheme, on_progress)
        figures["calibration_kl_divergence"] = {one.recipe: one.kl_divergence for one in measured}
        made = prepare_model(
            store, version, artifact, scheme, on_progress, recipe=recipe, out=out, figures=figures, **changes
        )  # fmt: skip
        shutil.rmtree(folder)
    return *made, measured


def _make_int8(material: Material, on_progress: OnProgress) -> Outcome:
    checkpoint, learned = material.checkpoint, material.learned
    squares = collect_importance(checkpoint, learned, on_progress)
    usual = {name: np.sqrt(found) for name, found in squares.items()}
    judge = DivergenceEvaluator(checkpoint, material.tokenizer, material.judged)
    bits = int8_bits_per_weight(list(_read_shapes(checkpoint, squares).values()))
    ways = {"round to nearest": checkpoint}
    ways |= {
        f"smoothed by {power:g}": smooth.smooth(checkpoint, usual, power)
        for power in SMOOTHING["int8"]
    }
    measured = []
    for name, way in ways.items():
        measured.append(RecipeResult(name, bits, judge.measure(way, "int8")))
        on_progress(Progress("judge", len(measured), len(ways), "recipes"))
    best = min(measured, key=lambda one: one.kl_divergence)
    figures = {"recipe": best.recipe, "bits_per_weight": bits}
    return {"checkpoint": ways[best.recipe]}, figures, measured


def _make_static(material: Material, scheme: str, on_progress: OnProgress) -> Outcome:
    """Of the recipes that cost the model little enough, the one with the most static matrices."""
    learned = material.learned
    checkpoint = replace(material.checkpoint, tensors=OwnHead(material.checkpoint.tensors))
    largest = collect_largest(checkpoint, learned, on_progress)
    shapes = _read_shapes(checkpoint, largest)
    judge = DivergenceEvaluator(checkpoint, material.tokenizer, material.judged)
    measured, made = [], {}
    total = len(SMOOTHING[scheme]) * len(NOISE)
    for index, power in enumerate(SMOOTHING[scheme]):
        way = smooth.smooth(checkpoint, largest, power)
        squares = collect_importance(way, learned, on_progress)
        tops = collect_largest(way, learned, on_progress)
        noise = {name: find_noise(way.tensors, name, tops[name], squares[name]) for name in tops}
        for place, limit in enumerate(NOISE, index * len(NOISE)):
            static = choose_static(noise, limit)
            recipe = f"smoothed by {power:g}, {len(static)} of {len(noise)} matrices static"
            if static and recipe not in made:
                weights = StaticActivationWeights(
                    {name: float(tops[name].max()) for name in static}, STATIC_WEIGHT_BITS[scheme]
                )
                divergence = judge.measure(way, weights)
                measured.append(RecipeResult(recipe, count_bits(shapes, static), divergence))
                made[recipe] = {"checkpoint": way, "weights": weights}, len(static)
            on_progress(Progress("judge", place + 1, total, "recipes"))
    if not measured:
        raise CompressionError(
            "no matrix of this model can take static 8-bit activations without losing more than "
            f"{max(NOISE):.1%} of its outputs' energy; take --scheme int8"
        )
    near = [one for one in measured if one.kl_divergence <= MOST_DIVERGENCE]
    if not near:
        least = min(one.kl_divergence for one in measured)
        raise CompressionError(
            f"static activations cost this model a divergence of {least:.3g} at least, more than the "
            f"{MOST_DIVERGENCE:g} that they may; take --scheme int8"
        )
    best = max(near, key=lambda one: (made[one.recipe][1], -one.kl_divergence))
    changes, count = made[best.recipe]
    figures = {"recipe": best.recipe, "bits_per_weight": best.bits_per_weight, "static": count}
    return changes, figures, measured


def _read_shapes(checkpoint: DecoderCheckpoint, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Rows and columns of matrices."""
    found = {name: checkpoint.tensors.read_tensor(f"{name}.weight").shape for name in names}
    return {name: (int(rows), int(columns)) for name, (rows, columns) in found.items()}


def _make_int4(
    material: Material, bits: float, kept: KeptAnswers, on_progress: OnProgress
) -> Outcome:
    """What was measured is kept, so that an interrupted run goes on."""
    quantizer, recipes, measured = try_recipes(
        material.checkpoint, material.tokenizer, material.judged, material.learned, bits=bits,
        kept=kept, on_progress=on_progress,
    )  # fmt: skip
    best = choose_recipe(measured)
    forms = next(one.forms for one in recipes if one.name == best.recipe)
    figures = {
        "bits_per_weight": best.bits_per_weight, "recipe": best.recipe,
        "forms": dict(Counter(map(str, forms.values())).most_common()),
    }  # fmt: skip
    return {"weights": Int4Weights(quantizer.make_all(forms, on_progress))}, figures, measured
