"""The pipeline for encoders: the same stages, evaluated by embeddings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.compress.test_prune_encoder import put_encoder
from tests.evaluate.test_embeddings import write_texts
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.compare.columns import (
    AGREEMENT,
    describe_conditions,
    make_cells,
    make_columns,
    make_domain_table,
)
from thrifty.compare.plot import plot_comparison
from thrifty.compare.report import make_report
from thrifty.compare.table import Comparison, ComparisonRequest, compare
from thrifty.compress.pipeline import PipelineResult, run_pipeline
from thrifty.engines.machine import detect_machine
from thrifty.errors import CompressionError, EvaluationError
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec
from thrifty.speed_benchmark import measure_speed
from thrifty.types import Family

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def store(home: Home) -> Store:
    return Store(home.models)


@pytest.fixture(scope="module")
def source(store: Store) -> tuple[NamedVersion, Artifact]:
    return put_encoder(store)


@pytest.fixture(scope="module")
def texts(home: Home) -> dict[str, Any]:
    """Keys of the spec that name small texts, and pairs of texts."""
    judged = write_texts(home.root / "judged.jsonl", 60, seed=9)
    lines = [json.loads(line)["text"] for line in judged.read_text().splitlines()]
    near = home.root / "near.jsonl"
    near.write_text(
        "".join(json.dumps({"texts": [a, b]}) + "\n" for a, b in itertools.pairwise(lines))
    )
    return {
        "text": str(write_texts(home.root / "learned.jsonl", 700, seed=5)),
        "held_out": [str(judged), str(near)],
    }


def run(source: Any, store: Store, home: Home, **keys: Any) -> PipelineResult:
    compress = CompressSpec.model_validate(keys)
    return run_pipeline(compress, source, store=store, home=home)


@pytest.fixture(scope="module")
def compressed(source: Any, store: Store, home: Home, texts: Any) -> PipelineResult:
    return run(source, store, home, prune=0.8, quantize="int8", **texts)


def test_an_encoder_is_pruned_and_quantized_and_each_stage_is_measured(
    compressed: PipelineResult, source: Any
) -> None:
    names = [stage.version.name for stage in compressed.stages]
    assert names == ["encoder-pruned", "encoder-pruned-int8"]
    assert compressed.result[1].description.family is Family.ENCODER
    agreements = []
    for stage in compressed.stages:
        passages, near = stage.measured
        for found in (passages, near):
            assert found.kind == "embeddings"
            assert found.conditions["reference"] == source[1].id
            assert found.values["beside"] == "encoder@v1"
            assert found.values["texts"] == 60
        assert [one.values["domain"] for one in (passages, near)] == ["judged", "near"]
        agreements.append(passages.values["rank_correlation"]["spearman"])
    assert compressed.verdict is not None
    assert set(compressed.verdict.drops) == {"judged", "near"}
    assert all(0.2 < one < 0.99999 for one in agreements)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prune": 0.8, "quantize": "int4"}, "encoders can only be quantized to int8"),
        ({"quantize": "int8", "text": "passages"}, "quantized without calibration text"),
        ({"prune": 0.8, "held_out_tokens": 100}, "evaluated on the embeddings of 1,024"),
    ],
)
def test_what_is_for_decoders_is_refused(
    keys: dict[str, Any], message: str, source: Any, store: Store, home: Home, texts: Any
) -> None:
    with pytest.raises(CompressionError, match=message):
        run(source, store, home, **{**texts, **keys})


@pytest.fixture(scope="module")
def compared(compressed: PipelineResult, store: Store, home: Home) -> Comparison:
    machine = detect_machine()
    speed = measure_speed(store, home, *compressed.result, machine)
    assert set(speed.values["texts_per_s"]) == {"1", "32"}
    assert all(value > 1 for value in speed.values["texts_per_s"].values())
    names = ["encoder-pruned-int8", "encoder-pruned"]
    return compare(ComparisonRequest(names, measure=False), store=store, home=home, machine=machine)


def test_encoders_stand_beside_each_other(compared: Comparison, tmp_path: Path) -> None:
    assert (compared.reference, compared.family) == ("encoder@v1", Family.ENCODER)
    columns = make_columns(compared)
    cells = dict(zip(columns, make_cells(compared, compared.rows[0]), strict=True))
    assert {"cosine", "rank correlation", "same nearest", "texts/s, 32 per request"} <= set(columns)
    worst = cells["worst domain"]
    assert all(text for name, text in cells.items() if name != "same nearest" or worst == "judged")
    assert "±" in cells["rank correlation"]
    found = compared.as_dict()["models"][0]
    assert found["worst"] == worst
    lowest = min(found["domains"].values(), key=lambda one: one["rank_correlation"]["spearman"])
    assert found["rank_correlation"] == lowest["rank_correlation"]
    headers, rows = make_domain_table(compared)
    assert headers == ("model", "domain", *AGREEMENT)
    assert [cells[1].partition(" ")[0] for cells in rows] == ["judged", "near"] * 2
    assert found["rank_correlation"]["spearman"] > 0.2
    assert found["kl_divergence"] is None
    assert any("texts per second" in line for line in describe_conditions(compared))
    report = make_report(compared)
    assert "1 - rank correlation of similarities on the worst domain" in report
    assert f"Worst domain: {worst}, rank correlation 0." in report
    plot_comparison(compared, tmp_path / "plot.png")


def test_encoders_answer_no_tasks(compared: Comparison, store: Store, home: Home) -> None:
    with pytest.raises(EvaluationError, match="answers no tasks"):
        compare(
            ComparisonRequest(["encoder"], tasks=["arc-easy"], measure=False),
            store=store,
            home=home,
            machine=detect_machine(),
        )


def test_a_pruned_encoder_is_taught_by_the_whole_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    home = Home(tmp_path)
    store = Store(home.models)
    source = put_encoder(store)
    found = run(
        source, store, home, prune={"parameters": 0.75, "depth": True},
        distill={"tokens": 30_000, "learning_rate": 1e-3, "batch_tokens": 1000},
        quantize="none", text=str(write_texts(tmp_path / "learned.jsonl", 700, seed=5)),
        held_out=str(write_texts(tmp_path / "judged.jsonl", 60, seed=9)),
    )  # fmt: skip
    assert [stage.name for stage in found.stages] == ["prune", "distill"]
    pruned, taught = (
        stage.measured[0].values["rank_correlation"]["spearman"] for stage in found.stages
    )
    assert taught > pruned
