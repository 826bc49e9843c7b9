"""Models as OpenVINO IR in 8 or 4 bits, each chosen by measurement.

Both learn from calibration text. INT8 rounds each group of columns to its nearest grid, of the model as it is or
smoothed (`smooth.py`), whichever the rounding costs least. INT4 chooses a form for each matrix (`recipes.py`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.compress.calibration import (
    check_no_overlap,
    collect_importance,
    count_tokens,
    read_calibration,
)
from thrifty.compress.judge import Judge, Measured
from thrifty.compress.quantize.forms import FORMS
from thrifty.compress.quantize.recipes import (
    Int4Weights,
    choose_recipe,
    try_recipes,
)
from thrifty.compress.quantize.smooth import smooth
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.engines.openvino.weights import int8_bits_per_weight
from thrifty.engines.server.text import TextTokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.windows import TokenArray, digest_file
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
SELECTION_TOKENS = 8192
"""Of calibration text that nothing was made with, to choose by."""
CALIBRATION_TOKENS = {"int8": 8192, "int4": 32_768}
"""Smoothing needs the size of inputs alone, GPTQ how they go together."""
BITS = 5.0
SMOOTHING = (0.5, 0.65)
"""Powers that are tried."""

Made = tuple[NamedVersion, Artifact, list[Measured]]


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
    """The model in 8 bits (`int8`) or 4 (`int4`), registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        version: What to make smaller: a checkpoint.
        artifact: Its files.
        scheme: `int8` or `int4`.
        out: The new model's name.
        calibration: Text to learn from; needed for `int4`. Without it, and for encoders, `int8` is plain
            rounding.
        held_out: Text that the result will be judged by, which the other must not hold.
        bits: For `int4`, the most bits a weight on average over all matrices.
        tokens: How much of the calibration text is used. Default: `CALIBRATION_TOKENS`.
        on_progress: Told of every step.

    Raises `CompressionError`, and what the store raises.
    """
    encoder = artifact.description.family is Family.ENCODER
    if scheme == "int4" and encoder:
        raise CompressionError("encoders are quantized to int8; in 4 bits they are not made yet")
    if scheme == "int4" and calibration is None:
        raise CompressionError(
            "int4 learns from text: name some with --text (thrifty data fetch passages)"
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
        recipe |= {"bits": bits, "forms": [str(form) for form in FORMS]}
    else:
        recipe |= {"smoothing": list(SMOOTHING)}
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
            changes, figures, measured = _make_int8(checkpoint, tokenizer, *windows, on_progress)
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
) -> tuple[dict[str, Any], dict[str, Any], list[Measured]]:
    """What is prepared otherwise, what is known of it, and what was tried."""
    squares = collect_importance(checkpoint, learned, count_tokens(learned), on_progress)
    judge = Judge(checkpoint, tokenizer, judges)
    bits = int8_bits_per_weight([
        (len(values), values.shape[1])
        for values in (checkpoint.tensors.read_tensor(f"{name}.weight") for name in squares)
    ])  # fmt: skip
    ways = {"round to nearest": checkpoint}
    ways |= {f"smoothed by {power:g}": smooth(checkpoint, squares, power) for power in SMOOTHING}
    measured = []
    for name, way in ways.items():
        measured.append(Measured(name, bits, judge.measure(way, "int8")))
        on_progress(Progress("judge", len(measured), len(ways), "recipes"))
    best = min(measured, key=lambda one: one.kl_divergence)
    figures = {"recipe": best.recipe, "bits_per_weight": bits}
    return {"checkpoint": ways[best.recipe]}, figures, measured


def _make_int4(
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    judges: list[TokenArray],
    learned: list[TokenArray],
    bits: float,
    kept: KeptAnswers,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], dict[str, Any], list[Measured]]:
    """The same. What was measured is kept, so that a run that is broken off goes on."""
    rounder, recipes, measured = try_recipes(
        checkpoint, tokenizer, judges, learned, bits=bits, kept=kept, on_progress=on_progress
    )
    best = choose_recipe(measured)
    forms = next(one.forms for one in recipes if one.name == best.recipe)
    figures = {
        "bits_per_weight": best.bits_per_weight, "recipe": best.recipe,
        "forms": dict(Counter(map(str, forms.values())).most_common()),
    }  # fmt: skip
    return {"weights": Int4Weights(rounder.make_all(forms, on_progress))}, figures, measured
