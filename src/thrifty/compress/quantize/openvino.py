"""Decoders as OpenVINO IR in 8 or 4 bits.

INT8 rounds each row to its nearest grid. INT4 is chosen by measurement among recipes that fit a budget of
bits: plain rounding, GPTQ with groups of 64 or 32, each with the most sensitive matrices kept in 8 bits.
Table and head are kept in 8 bits: they are looked up, not computed with, and cost most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import opset13 as op

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.compress.calibration import check_no_overlap, collect_inputs
from thrifty.compress.judge import Judge
from thrifty.compress.quantize.gptq import Int4Codes, output_error, quantize, round_to_nearest
from thrifty.compress.quantize.sensitivity import (
    choose_eight_bits,
    eight_bits,
    measure_sensitivity,
)
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.engines.openvino.weights import int4_codes, int8_weight, table_weight
from thrifty.engines.server.text import TextTokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import digest_file, read_windows
from thrifty.types import Family, OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

WINDOW = 512
CALIBRATION_TOKENS = 32_768
SENSITIVITY_TOKENS = 512
SELECTION_TOKENS = 8192
"""Of calibration text that the recipes were not made with, to choose among them by."""
BITS = 5.0
GROUPS = (64, 32)
MIN_GROUP = 16
"""Where a matrix's columns are no multiple of a group, the group is halved, down to this."""


@dataclass(frozen=True)
class Int4Recipe:
    """One way to 4 bits: codes for every matrix, and which of them stay in 8 bits."""

    name: str
    codes: Mapping[str, Int4Codes]
    kept: frozenset[str] = frozenset()

    @property
    def bits_per_weight(self) -> float:
        """Over all matrices but the table and the head."""
        total = sum(
            (eight_bits(found) if name in self.kept else found.bits_per_weight) * found.codes.size
            for name, found in self.codes.items()
        )
        return total / sum(found.codes.size for found in self.codes.values())


class Int4Weights:
    """The weights of a graph under an `Int4Recipe`."""

    def __init__(self, recipe: Int4Recipe) -> None:
        self._recipe = recipe
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        found = self._recipe.codes.get(name)
        if found is None or name in self._recipe.kept:
            kept = int8_weight(values)
        else:
            kept = int4_codes(found.codes, found.scales)
        return op.matmul(x, kept, False, True)

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return table_weight(values, "int8")


@dataclass(frozen=True)
class Measured:
    """What a recipe came to, on text that it was not made with."""

    recipe: str
    bits_per_weight: float
    kl_divergence: float


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
    tokens: int = CALIBRATION_TOKENS,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact, list[Measured]]:
    """The model in 8 bits (`int8`) or 4 (`int4`), registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        version: What to make smaller: a checkpoint.
        artifact: Its files.
        scheme: `int8` or `int4`.
        out: The new model's name.
        calibration: Text to learn from; needed for `int4`.
        held_out: Text that the result will be judged by, which the other must not hold.
        bits: For `int4`, the most bits a weight on average over all matrices.
        tokens: How much of the calibration text is used.
        on_progress: Told of every step.

    Raises `CompressionError`, and what the store raises.
    """
    if scheme == "int8":
        made = prepare_model(store, version, artifact, "int8", on_progress, out=out)
        return *made, []
    if artifact.description.family is Family.ENCODER:
        raise CompressionError("encoders are quantized to int8; in 4 bits they are not made yet")
    if calibration is None:
        raise CompressionError(
            "int4 learns from text: name some with --text (thrifty data fetch passages)"
        )
    if held_out is not None:
        check_no_overlap(calibration, held_out)
    folder = store.folder_of(artifact.id)
    checkpoint = load_decoder(folder)
    recipe = {
        **make_recipe("int4"), "method": "measured", "bits": bits, "tokens": tokens,
        "calibration_sha256": digest_file(calibration), "groups": list(GROUPS),
    }  # fmt: skip
    made_before = store.find_made(artifact.id, recipe)
    if made_before is not None and made_before[0].name == out:
        return *made_before, []
    base = prepare_model(store, version, artifact, "none", on_progress)
    tokenizer = TextTokenizer.load(store.folder_of(base[1].id))
    recipes, measured = make_recipes(
        checkpoint, tokenizer, calibration, bits=bits, tokens=tokens, on_progress=on_progress
    )
    best = min(measured, key=lambda one: one.kl_divergence)
    chosen = next(one for one in recipes if one.name == best.recipe)
    figures = {
        "bits_per_weight": best.bits_per_weight,
        "recipe": best.recipe,
        "calibration_kl_divergence": {one.recipe: one.kl_divergence for one in measured},
    }
    new_version, new_artifact = prepare_model(
        store, version, artifact, "int4", on_progress,
        weights=Int4Weights(chosen), recipe=recipe, out=out, figures=figures,
    )  # fmt: skip
    return new_version, new_artifact, measured


def make_recipes(
    checkpoint: DecoderCheckpoint,
    tokenizer: TextTokenizer,
    calibration: Path,
    *,
    bits: float,
    tokens: int,
    on_progress: OnProgress = ignore_progress,
) -> tuple[list[Int4Recipe], list[Measured]]:
    """Every recipe that fits the budget, and what each came to."""
    most = tokens + SENSITIVITY_TOKENS + SELECTION_TOKENS
    stream = read_windows(calibration, tokenizer, WINDOW, most)
    judges = list(itertools.islice(stream, SELECTION_TOKENS // WINDOW))
    probes = list(itertools.islice(stream, SENSITIVITY_TOKENS // WINDOW))
    inputs = collect_inputs(checkpoint, stream, tokens, on_progress)
    recipes: list[Int4Recipe] = []
    plain = _make_codes(checkpoint, inputs, GROUPS[0], on_progress, plain=True)
    recipes.append(Int4Recipe(f"round to nearest, groups of {GROUPS[0]}", plain))
    costs: dict[str, float] | None = None
    for group in GROUPS:
        codes = _make_codes(checkpoint, inputs, group, on_progress)
        if costs is None:
            costs = measure_sensitivity(checkpoint, codes, probes, on_progress)
        recipe = Int4Recipe(f"GPTQ, groups of {group}", codes)
        recipes.append(recipe)
        kept = choose_eight_bits(costs, codes, bits)
        if kept:
            label = f"GPTQ, groups of {group}, {len(kept)} of {len(codes)} matrices in 8 bits"
            recipes.append(Int4Recipe(label, codes, frozenset(kept)))
    fitting = [one for one in recipes if one.bits_per_weight <= bits]
    if not fitting:
        least = min(one.bits_per_weight for one in recipes)
        raise CompressionError(
            f"4 bits and their scales take {least:.2f} bits a weight, not {bits:g}"
        )
    judge, measured = Judge(checkpoint, tokenizer, judges), list[Measured]()
    for index, one in enumerate(fitting):
        divergence = judge.measure(checkpoint, Int4Weights(one))
        measured.append(Measured(one.name, one.bits_per_weight, divergence))
        on_progress(Progress("judge", index + 1, len(fitting), "recipes"))
    return fitting, measured


def _make_codes(
    checkpoint: DecoderCheckpoint,
    inputs: Mapping[str, FloatArray],
    group: int,
    on_progress: OnProgress,
    *,
    plain: bool = False,
) -> dict[str, Int4Codes]:
    found = {}
    for index, (name, matrix) in enumerate(inputs.items()):
        values = checkpoint.tensors.read_tensor(f"{name}.weight")
        size = math.gcd(values.shape[1], group)
        if size < MIN_GROUP:
            raise CompressionError(
                f"{name} has {values.shape[1]} columns, which no group of {MIN_GROUP} or more divides"
            )
        found[name] = round_to_nearest(values, size) if plain else quantize(values, matrix, size)
        if not plain and output_error(values, found[name], matrix) > 1:
            raise CompressionError(f"{name} cannot be kept in 4 bits: its outputs are lost")
        on_progress(Progress("quantize", index + 1, len(inputs), "matrices"))
    return found
