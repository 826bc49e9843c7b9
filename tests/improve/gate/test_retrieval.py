"""The gate over encoders: queries that find their own texts, and those that do not any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.test_embeddings import WORDS, make_words
from tests.graphs.test_encoder import make_tensors, write, write_pooling
from tests.train.test_named_data import build
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.verdicts import find_failure
from thrifty.cli.app import app
from thrifty.errors import EvaluationError
from thrifty.evaluate.gate_record import verify_record
from thrifty.evaluate.windows import digest_file
from thrifty.home import HOME_VARIABLE, Home
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.retrieval import FOUND, read_search
from thrifty.improve.gate.run import run_gate

QUERIES = 120


def add(store: Store, name: str, lineage: Lineage, *, noise: float = 0.0, positions: float = 0.1) -> Any:  # fmt: skip
    """An encoder whose vectors are about the words of a text, or mostly about its length."""
    rng = np.random.default_rng(5)
    tensors = {
        key: (tensor + noise * rng.standard_normal(tensor.shape)).astype(np.float32)
        for key, tensor in make_tensors().items()
    }
    tensors["embeddings.position_embeddings.weight"] *= np.float32(positions)
    for key in tensors:
        if ".dense.weight" in key:  # of the layers: what they add to the words' vectors
            tensors[key] *= np.float32(0.1)
    with store.stage(f"{name}-{noise}-{positions}") as stage:
        (stage / "model").mkdir(parents=True)
        folder = write(stage / "model", tensors=tensors, model_type="bert")
        write_pooling(folder, "mean_tokens", normalize=True)
        make_words().save(str(folder / "tokenizer.json"))
        return store.add(folder, name, lineage)


def write_rows(path: Path, count: int, seed: int, **more: Any) -> Path:
    """Queries of six words of their texts, which have eight."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = [str(one) for one in rng.choice(WORDS, 8, replace=False)]
        row = {"query": " ".join(words[:6]), "positive": " ".join(words)}
        rows.append({**row, "topic": ("even", "odd")[number % 2], **more})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Versions of one encoder: v1, v2 hardly different from it, v3 broken, v4 trained on the rows."""
    home = Home(tmp_path_factory.mktemp("gate"))
    store = Store(home.models)
    version, artifact = add(store, "base", Lineage())
    parents = (Parent(artifact.id, version.label),)
    add(store, "m", Lineage(parents=parents), noise=1e-5)
    add(store, "m", Lineage(parents=parents), noise=2e-5)
    add(store, "m", Lineage(parents=parents), positions=40.0)
    rows = write_rows(home.root / "rows.jsonl", QUERIES, seed=1)
    recipe = {"step": "train", "data": "rows.jsonl", "data_sha256": digest_file(rows)}
    learned = Lineage(parents=parents, recipe=recipe, figures={"data_paths": [str(rows)]})
    add(store, "m", learned, noise=3e-5)
    return home


def judge(home: Home, candidate: str, *data: Path | str, **more: Any) -> Any:
    named = [str(one) for one in data or (home.root / "rows.jsonl",)]
    request = GateRequest(candidate, "m@v1", named, **{"speed": False, **more})
    return run_gate(Store(home.models), home, request)


@pytest.mark.engine
def test_an_equal_encoder_passes_and_a_broken_one_is_refused(home: Home) -> None:
    store = Store(home.models)
    good = judge(home, "m@v2")
    assert good.passed, good.message
    (whole,) = [one for one in good.slices if one.name == "all"]
    assert (whole.metric, whole.count, whole.outcome) == (FOUND, QUERIES, "not worse")
    assert whole.base == pytest.approx(whole.against, abs=0.02)
    assert whole.against > 0.8, "what is searched can be found"
    assert not verify_record(home, store, good.record).faults
    bad = judge(home, "m@v3")
    assert not bad.passed
    failed = [one for one in bad.slices if one.failed]
    assert {one.name for one in failed} == {"all", "topic=even", "topic=odd"}
    example = failed[0].examples[0]
    assert set(example["question"].split()) < set(example["against"].split())
    assert example["candidate"] != example["against"]
    assert "m@v3 fails the gate beside m@v1" in str(find_failure(store, store.find("m@v3")[0]))


@pytest.mark.engine
def test_queries_that_were_learned_do_not_judge(home: Home, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nothing to judge on; name questions or text that"):
        judge(home, "m@v4")
    both = tmp_path / "both.jsonl"
    other = write_rows(tmp_path / "other.jsonl", 80, seed=2)
    both.write_text((home.root / "rows.jsonl").read_text() + other.read_text())
    found = judge(home, "m@v4", both)
    assert found.slices[0].count == 80
    assert found.notes == (f"{QUERIES} questions are left out: the model was trained on them",)


@pytest.mark.engine
def test_a_built_set_and_speed_judge_encoders_too(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in write_rows(tmp_path / "r.jsonl", 60, 3).read_text().splitlines()]  # fmt: skip
    kept = [{name: row[name] for name in ("query", "positive")} for row in rows]
    build(home, "searches", "contrastive", {"train": kept[:10], "test": kept[10:]})
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    code = app(
        ["gate", "m@v2", "--against", "m@v1", "--data", "searches", "--margin", "0.1", "--json"],
        standalone_mode=False,
    )
    found = json.loads(capsys.readouterr().out)
    assert (int(code or 0) == 0) == (found["verdict"] == "pass")
    assert any(name.startswith("texts/s") for name in found["speed"])
    with pytest.raises(EvaluationError, match="a judge compares answers"):
        judge(home, "m@v2", judge="judges:prefer")


def test_pairs_of_the_highest_score_are_searches_and_the_others_are_searched(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = [
        {"texts": ["a", "b"], "score": 5}, {"texts": ["a", "c"], "score": 0.5},
        {"texts": ["d", "e"], "score": 5, "language": "en"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    search = read_search(path, "own", 10)
    assert [(one.question.text, one.question.answers) for one in search.items] == [
        ("a", ("b",)), ("d", ("e",)),
    ]  # fmt: skip
    assert search.texts == ["b", "c", "e"]
    assert search.items[1].tags == {"set": "own", "language": "en"}
    assert read_search(path, "own", 1).texts == ["b", "c"]
    for wrong in (
        {"query": "a"},
        {"question": "a"},
        {"query": "a", "positive": "b", "negatives": "c"},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(EvaluationError, match="line 1: encoders are judged by lines with"):
            read_search(path, "own", 10)
    path.write_text(json.dumps({"texts": ["a", "a"]}))
    with pytest.raises(EvaluationError, match="holds no query with a text of its own"):
        read_search(path, "own", 10)
