"""Pruned decoders: plain checkpoints of the requested size, close to the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.calibration import collect_inputs
from thrifty.compress.divergence_evaluator import DivergenceEvaluator
from thrifty.compress.prune.depth import measure_influence, rank_layers
from thrifty.compress.prune.prune import prune_decoder
from thrifty.compress.prune.pruner import ROUNDING
from thrifty.compress.prune.request import PruningRequest
from thrifty.compress.prune.views import keep_layers
from thrifty.compress.prune.width import Widths, count_parameters, narrow, read_widths
from thrifty.errors import CompressionError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.types import Format

pytestmark = pytest.mark.engine

MODEL = Llama(vocab=257, layers=4, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=128,
              context=256, tied=True)  # fmt: skip
WINDOWS = [
    np.array([(7 * i * i + n * i) % 250 for i in range(120)], dtype=np.int64) for n in range(6)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("pruned") / "models")


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store, MODEL)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "calibration.txt", 40_000, seed=5)


def test_counted_parameters_are_those_of_the_tensors(store: Store, made: Any) -> None:
    checkpoint = load_decoder(store.folder_of(made[1].id))
    widths = read_widths(checkpoint)
    assert widths == Widths(128, 2, 64)
    counted = count_parameters(checkpoint.shape, 4, widths, tied=True)
    assert counted == sum(tensor.size for tensor in MODEL.make_tensors().values())


def test_a_layer_that_does_nothing_goes_first(store: Store, tmp_path: Path) -> None:
    tensors = MODEL.make_tensors()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"] *= 1e-3
    checkpoint = load_decoder(MODEL.write_safetensors(tmp_path / "m", tensors=tensors))
    influence = measure_influence(checkpoint, WINDOWS)
    assert np.argmin(influence) == 2
    assert influence[2] < 1e-3
    found = rank_layers(checkpoint, WINDOWS, 2)
    assert found[0].layer == 2
    assert found[0].kl_divergence < 0.01 < found[1].kl_divergence
    kept = keep_layers(checkpoint, [0, 1, 3])
    assert kept.shape.layers == 3
    assert "model.layers.3.mlp.up_proj.weight" not in kept.tensors
    np.testing.assert_array_equal(
        kept.tensors.read_tensor("model.layers.2.mlp.up_proj.weight"),
        checkpoint.tensors.read_tensor("model.layers.3.mlp.up_proj.weight"),
    )


def test_parts_that_do_nothing_cost_nothing(tmp_path: Path) -> None:
    """Half of the neurons, one group of heads and a quarter of the channels have no effect."""
    tensors = MODEL.make_tensors()
    for layer in range(MODEL.layers):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}mlp.down_proj.weight"][:, ::2] = 0
        tensors[f"{prefix}self_attn.o_proj.weight"][:, 32:] = 0
        for writer in ("mlp.down_proj", "self_attn.o_proj"):
            tensors[f"{prefix}{writer}.weight"][48:] = 0
    tensors["model.embed_tokens.weight"][:, 48:] = 0
    checkpoint = load_decoder(MODEL.write_safetensors(tmp_path / "m", tensors=tensors))
    inputs = collect_inputs(checkpoint, WINDOWS)
    found, errors = narrow(checkpoint, inputs, Widths(64, 1, 48))
    assert read_widths(found) == Widths(64, 1, 48)
    assert found.shape.heads == 2
    assert max(errors.values()) < 1e-3
    write_decoder(found, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"]) == (64, 2)
    judge = DivergenceEvaluator(checkpoint, None, WINDOWS)  # type: ignore[arg-type]
    # Both compute as in serving, in fewer bits than the evaluator's reference.
    assert judge.measure(load_decoder(tmp_path / "out")) < judge.measure(checkpoint) + 0.01


@pytest.mark.parametrize(
    ("depth", "width"), [(True, False), (False, True), (True, True)], ids=["depth", "width", "both"]
)
def test_what_is_made_has_the_size_and_is_served_and_evaluated(
    store: Store, made: Any, text: Path, tmp_path: Path, depth: bool, width: bool
) -> None:
    out = f"pruned-{depth}-{width}".lower()
    version, artifact, report = prune_decoder(
        store,
        *made,
        PruningRequest(0.75, out=out, calibration=text, depth=depth, width=width, tokens=4096),
    )
    assert report is not None
    assert artifact.description.format is Format.SAFETENSORS
    assert report.chosen.parameters <= (0.75 + ROUNDING) * report.parameters_before
    least = min(report.candidates, key=lambda one: one.kl_divergence)
    assert report.chosen.description == least.description
    assert report.chosen.kl_divergence <= 1.1 * least.kl_divergence, "made from more text"
    assert bool(report.layers) or width
    assert version.lineage.figures["way"] == report.chosen.description
    assert version.lineage.parents[0].id == made[1].id
    held_out = write_text(tmp_path / "held.txt", 3000, seed=9)
    found = evaluate(
        out,
        "tiny@v1",
        EvaluationOptions(text=held_out, window=128),
        store=store,
        folder=tmp_path / "e",
    ).divergence
    assert found is not None
    assert 0 < found.kl_divergence.mean < 2 * report.chosen.kl_divergence
    again, _, none = prune_decoder(
        store,
        *made,
        PruningRequest(0.75, out=out, calibration=text, depth=depth, width=width, tokens=4096),
    )
    assert again == version
    assert none is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": 1.5}, "above 0 and below 1"),
        ({"depth": False, "width": False}, "nothing may be pruned"),
        ({"parameters": 0.05}, "cannot be reached"),
        ({"tokens": 512, "calibration": "short"}, "too little text"),
    ],
)
def test_what_cannot_be_done_is_said(
    store: Store, made: Any, text: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {"parameters": 0.75, "out": "x", "calibration": text, **changes}
    if arguments["calibration"] == "short":
        arguments["calibration"] = write_text(tmp_path / "short.txt", 5000)
    with pytest.raises(CompressionError, match=message):
        prune_decoder(store, *made, PruningRequest(**arguments))  # type: ignore[arg-type]
