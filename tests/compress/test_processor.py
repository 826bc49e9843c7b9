"""What a processor cannot compute rightly is not made, served, imported or evaluated on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.cli import models
from thrifty.compress.quantize import openvino
from thrifty.compress.quantize.openvino import quantize_openvino
from thrifty.compress.quantize.static_activations import OwnHead, StaticActivationWeights
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import OpenVinoEngine
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.errors import EngineError, EvaluationError
from thrifty.evaluate.open_model import open_model
from thrifty.graphs.arithmetic import LIMIT_VARIABLE
from thrifty.spec import load_spec
from thrifty.types import ignore_progress

pytestmark = pytest.mark.engine

OLD = dataclasses.replace(detect_machine(), features=frozenset({"avx2"}))
NEW = dataclasses.replace(detect_machine(), features=frozenset({"avx2", "avx_vnni"}))
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("processor") / "models")


@pytest.fixture(scope="module")
def checkpoint(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store)


@pytest.fixture(scope="module")
def static(
    store: Store, checkpoint: tuple[NamedVersion, Artifact]
) -> tuple[NamedVersion, Artifact]:
    """A model with 8-bit weights and static activations, as a newer processor makes it."""
    floats = load_decoder(store.folder_of(checkpoint[1].id))
    return prepare_model(
        store, *checkpoint, "w8a8", ignore_progress, out="static",
        recipe={**make_recipe("w8a8"), "method": "test"},
        checkpoint=dataclasses.replace(floats, tensors=OwnHead(floats.tensors)),
        weights=StaticActivationWeights({LAYER: 4.0}),
    )  # fmt: skip


def test_it_is_served_where_it_is_right_and_refused_elsewhere(
    store: Store, static: tuple[NamedVersion, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    engine, spec = OpenVinoEngine(), load_spec(flags={"model": "static"}).spec
    assert engine.check(spec, static[1], NEW) == []
    (problem,) = engine.check(spec, static[1], OLD)
    assert problem.path == "model"
    assert "where they saturate, so that answers would be wrong" in problem.message
    assert "thrifty quantize CHECKPOINT --scheme w8a8" in problem.message


def test_no_replica_is_started_where_it_would_be_wrong(
    store: Store, static: tuple[NamedVersion, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that starts a replica may be another than the one that made the plan."""
    engine, spec = OpenVinoEngine(), load_spec(flags={"model": "static"}).spec
    served = engine.prepare(spec, static, store, NEW, ignore_progress)
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX2")
    with pytest.raises(EngineError, match="need a newer processor"):
        engine.launch(served, store, 1, [0], 0.1)


def test_it_is_not_evaluated_where_it_would_be_wrong(
    store: Store, static: tuple[NamedVersion, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX512_CORE")
    with pytest.raises(EvaluationError, match="cannot be evaluated here: weights in w8a8 need"):
        open_model("static", store)


def test_who_imports_it_is_told(
    store: Store, static: tuple[NamedVersion, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_store", lambda: store)
    monkeypatch.setattr(models, "fetch_model", lambda *_, **__: static)
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX2")
    with pytest.raises(EngineError, match="static@v1 is stored, but cannot be served here"):
        models.run_pull("static", as_json=False)


def test_other_weights_are_made_where_they_would_be_wrong(
    store: Store,
    checkpoint: tuple[NamedVersion, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino, "MOST_DIVERGENCE", 10.0)
    monkeypatch.setattr(openvino, "SMOOTHING", {"w7a8": (0.65,)})
    monkeypatch.setattr(openvino, "NOISE", (0.01,))
    monkeypatch.setattr(openvino, "WINDOW", 128)
    monkeypatch.setattr(openvino, "SELECTION_TOKENS", 512)
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX2")
    text = write_text(tmp_path / "calibration.txt", 6_000, seed=5)
    made: Any = quantize_openvino(
        store, *checkpoint, "w8a8", out="made", calibration=text, tokens=512
    )
    assert made[1].description.weights == "w7a8"
    assert made[0].lineage.recipe["quantize"] == "w7a8"
    # Which every processor computes rightly.
    spec = load_spec(flags={"model": "made"}).spec
    assert OpenVinoEngine().check(spec, made[1], OLD) == []
