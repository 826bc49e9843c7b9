"""Models as OpenVINO IR in 8 or 4 bits, each chosen by measurement.

All learn from calibration text. INT8 rounds each group of columns to its nearest grid, of the model as it is or
smoothed (`smooth.py`), whichever the rounding costs least. W8A8 fixes the grids of what matrices are fed, too
(`static.py`), of as many as cost little. INT4 chooses a form for each matrix (`recipes.py`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.compress.calibration import (
    check_no_overlap,
    collect_importance,
    collect_largest,
    read_calibration,
)
from thrifty.compress.divergence_evaluator import DivergenceEvaluator, RecipeResult
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
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.errors import CompressionError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.windows import TokenArray, digest_file
from thrifty.graphs.weights import int8_bits_per_weight
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
SELECTION_TOKENS = 8192
"""Of calibration text that nothing was made with, to choose by."""
CALIBRATION_TOKENS = {"int8": 8192, "w8a8": 8192, "int4": 32_768}
"""Smoothing needs the size of inputs alone, GPTQ how they go together."""
BITS = 5.0
SMOOTHING = {"int8": (0.5, 0.65), "w8a8": (0.65, 0.8)}
"""Powers that are tried: fixed grids need more of it."""
NOISE = (0.002, 0.004, 0.008)
"""How much of its outputs' energy a fixed grid may cost a matrix: each is tried."""
MOST_DIVERGENCE = 0.025
"""KL, nats: what fixed grids may cost a model. About as much as 2.5% of perplexity."""

Made = tuple[NamedVersion, Artifact, list[RecipeResult]]


def quantize_openvino(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    *,
    out: str,
    calibration: Path | None = None,
    held_out: Path | None = None,
    bits: float = BITS,
    tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Made:
    """The model in 8 bits (`int8`; with fixed activations, `w8a8`) or 4 (`int4`), registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        version: What to make smaller: a checkpoint.
        artifact: Its files.
        scheme: `int8`, `w8a8` or `int4`.
        out: The new model's name.
        calibration: Text to learn from; needed for all but `int8`, which without it, and for encoders, is
            plain rounding.
        held_out: Text that the result will be judged by, which the other must not hold.
        bits: For `int4`, the most bits a weight on average over all matrices.
        tokens: How much of the calibration text is used. Default: `CALIBRATION_TOKENS`.
        on_progress: Told of every step.

    Raises `CompressionError`, and what the store raises.
    """
    encoder = artifact.description.family is Family.ENCODER
    if scheme != "int8" and encoder:
        raise CompressionError(f"encoders are quantized to int8; as {scheme} they are not made yet")
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
        "calibration_sha256": digest_file(calibration),
    }  # fmt: skip
    if scheme == "int4":
        recipe |= {"bits": bits, "forms": [str(form) for form in WEIGHT_FORMATS]}
    else:
        recipe |= {"smoothing": list(SMOOTHING[scheme]), "smoothing_version": smooth.VERSION}
    if scheme == "w8a8":
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
        if scheme == "int4":
            changes, figures, measured = _make_int4(
                checkpoint, tokenizer, *windows, bits, kept, on_progress
            )
        else:
            make = _make_int8 if scheme == "int8" else _make_w8a8
            changes, figures, measured = make(checkpoint, tokenizer, *windows, on_progress)
        figures["calibration_kl_divergence"] = {one.recipe: one.kl_divergence for one in measured}
        made = prepare_model(
            store, version, artifact, scheme, on_progress, recipe=recipe, out=out, figures=figures, **changes
        )  # fmt: skip
        shutil.rmtree(folder)
    return *made, measured


def _make_int8(
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    judges: list[TokenArray],
    learned: list[TokenArray],
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, Any], list[RecipeResult]]:
    """What is prepared otherwise, what is known of it, and what was tried."""
    squares = collect_importance(checkpoint, learned, on_progress)
    usual = {name: np.sqrt(found) for name, found in squares.items()}
    judge = DivergenceEvaluator(checkpoint, tokenizer, judges)
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


def _make_w8a8(
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    judges: list[TokenArray],
    learned: list[TokenArray],
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, Any], list[RecipeResult]]:
    """The same. Of what costs the model little enough, that with the most matrices on fixed grids is taken."""
    checkpoint = replace(checkpoint, tensors=OwnHead(checkpoint.tensors))
    largest = collect_largest(checkpoint, learned, on_progress)
    shapes = _read_shapes(checkpoint, largest)
    judge = DivergenceEvaluator(checkpoint, tokenizer, judges)
    measured, made = [], {}
    total = len(SMOOTHING["w8a8"]) * len(NOISE)
    for index, power in enumerate(SMOOTHING["w8a8"]):
        way = smooth.smooth(checkpoint, largest, power)
        squares = collect_importance(way, learned, on_progress)
        tops = collect_largest(way, learned, on_progress)
        noise = {name: find_noise(way.tensors, name, tops[name], squares[name]) for name in tops}
        for place, limit in enumerate(NOISE, index * len(NOISE)):
            static = choose_static(noise, limit)
            recipe = f"smoothed by {power:g}, {len(static)} of {len(noise)} matrices fixed"
            if static and recipe not in made:
                weights = StaticActivationWeights(
                    {name: float(tops[name].max()) for name in static}
                )
                divergence = judge.measure(way, weights)
                measured.append(RecipeResult(recipe, count_bits(shapes, static), divergence))
                made[recipe] = {"checkpoint": way, "weights": weights}, len(static)
            on_progress(Progress("judge", place + 1, total, "recipes"))
    if not measured:
        raise CompressionError(
            "no matrix of this model can be fed 8 bits on a fixed grid without losing more than "
            f"{max(NOISE):.1%} of what it gives out; take --scheme int8"
        )
    near = [one for one in measured if one.kl_divergence <= MOST_DIVERGENCE]
    if not near:
        least = min(one.kl_divergence for one in measured)
        raise CompressionError(
            f"fixed grids cost this model a divergence of {least:.3g} at least, more than the "
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
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    judges: list[TokenArray],
    learned: list[TokenArray],
    bits: float,
    kept: KeptAnswers,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, Any], list[RecipeResult]]:
    """The same. What was measured is kept, so that a run that is broken off goes on."""
    quantizer, recipes, measured = try_recipes(
        checkpoint, tokenizer, judges, learned, bits=bits, kept=kept, on_progress=on_progress
    )
    best = choose_recipe(measured)
    forms = next(one.forms for one in recipes if one.name == best.recipe)
    figures = {
        "bits_per_weight": best.bits_per_weight, "recipe": best.recipe,
        "forms": dict(Counter(map(str, forms.values())).most_common()),
    }  # fmt: skip
    return {"weights": Int4Weights(quantizer.make_all(forms, on_progress))}, figures, measured
