"""The gate over stored models: text is measured by the real engine, and the verdict is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.evaluate.bigram import write_text
from tests.train.test_named_data import build
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.verdicts import find_failure
from thrifty.cli.app import app
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import EvaluationError
from thrifty.evaluate.gate_record import verify_record
from thrifty.evaluate.windows import digest_file
from thrifty.home import HOME_VARIABLE, Home
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.run import run_gate

pytestmark = pytest.mark.engine

SHAPE = Llama(
    vocab=257, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=512
)


def add(store: Store, name: str, noise: float, lineage: Lineage, sure: float = 1.0) -> Any:
    """A model whose weights are those of the base, more or less; one that is surer of what it does not
    know is worse.
    """
    rng = np.random.default_rng(5)
    tensors = {
        key: (tensor + noise * rng.standard_normal(tensor.shape)).astype(np.float32)
        for key, tensor in SHAPE.make_tensors().items()
    }
    tensors["model.embed_tokens.weight"] *= np.float32(sure)
    with store.stage(f"{name}-{noise}-{sure}") as stage:
        folder = SHAPE.write_safetensors(stage / "model", tensors=tensors, eos_token_id=256)
        make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
        return store.add(folder, name, lineage)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Versions of one model: v1, v2 hardly different from it, v3 broken, v4 trained on the text."""
    home = Home(tmp_path_factory.mktemp("gate"))
    store = Store(home.models)
    add(store, "base", 0.0, Lineage())
    version, artifact = store.find("base")
    parents = (Parent(artifact.id, version.label),)
    add(store, "m", 1e-5, Lineage(parents=parents))
    add(store, "m", 2e-5, Lineage(parents=parents))
    add(store, "m", 2e-5, Lineage(parents=parents), sure=2.0)
    learned = home.root / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": line}]} for line in read_domain(home)]
    learned.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"step": "train", "data": "rows.jsonl", "data_sha256": digest_file(learned)}
    figures = {"data_paths": [str(learned)]}
    add(store, "m", 3e-5, Lineage(parents=parents, recipe=recipe, figures=figures))
    return home


def read_domain(home: Home) -> list[str]:
    """Lines of words, written once."""
    path = home.root / "domain.jsonl"
    if not path.exists():
        text = write_text(home.root / "letters.txt", 6000, seed=3).read_text().split("\n")
        rows = [" ".join(line[at : at + 4] for at in range(0, 76, 4)) for line in text]
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def judge(home: Home, candidate: str, **more: Any) -> Any:
    domain = str(home.root / "domain.jsonl")
    request = GateRequest(candidate, "m@v1", [domain], speed=False, tokens=3000, **more)
    return run_gate(Store(home.models), home, request)


def test_an_equal_version_passes_and_a_broken_one_is_refused(home: Home) -> None:
    store = Store(home.models)
    good = judge(home, "m@v2")
    assert good.passed
    (text,) = good.slices
    assert (text.label, text.outcome) == ("text: domain", "not worse")
    assert text.base is not None
    assert text.base == pytest.approx(text.against, rel=0.01)
    assert find_failure(store, store.find("m@v2")[0]) is None
    assert not verify_record(home, store, good.record).faults
    bad = judge(home, "m@v3")
    assert not bad.passed
    failure = find_failure(store, store.find("m@v3")[0])
    assert failure is not None
    assert "fails the gate beside m@v1" in failure
    assert "text: domain" in failure
    again = judge(home, "m@v3")
    assert again.record == bad.record, "the same inputs have the same digest"


def test_the_command_prints_the_verdict_and_exits_by_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    domain = str(home.root / "domain.jsonl")

    def run(*arguments: str) -> tuple[int, str]:
        code = app(["gate", *arguments], standalone_mode=False)
        return int(code or 0), capsys.readouterr().out

    rest = ["--against", "m@v1", "--data", domain, "--tokens", "3000", "--no-speed"]
    code, out = run("m@v2", *rest, "--json")
    found = json.loads(out)
    assert (code, found["verdict"]) == (0, "pass")
    assert {"verdict", "slices", "record"} <= set(found)
    code, out = run("check", "m@v3", *rest)
    assert code == 1
    assert "worse" in out
    record = out.strip().splitlines()[-1]
    assert run("verify", record)[0] == 0
    Path(record).write_text(Path(record).read_text().replace('"fail"', '"pass"'))
    code, out = run("verify", record, "--json")
    assert code == 1
    assert json.loads(out)["valid"] is False
    Path(record).unlink()


def test_text_that_was_learned_judges_nothing(home: Home) -> None:
    with pytest.raises(EvaluationError, match="which the model was trained on"):
        judge(home, "m@v4")
    kept = (home.root / "rows.jsonl").read_text()
    (home.root / "rows.jsonl").write_text("changed")
    try:
        assert any("searched for leaks" in note for note in judge(home, "m@v4").notes)
    finally:
        (home.root / "rows.jsonl").write_text(kept)


def test_faults_are_said(home: Home) -> None:
    with pytest.raises(EvaluationError, match="are the same model"):
        judge(home, "m@v1")
    with pytest.raises(EvaluationError, match="--margin must be"):
        judge(home, "m@v2", margin=0.9)
    questions = home.root / "questions.jsonl"
    questions.write_text('{"question": "Who?"}\n')
    request = GateRequest("m@v2", "m@v1", [str(questions)], speed=False)
    with pytest.raises(EvaluationError, match="without a chat template cannot be asked"):
        run_gate(Store(home.models), home, request)
    with pytest.raises(EvaluationError, match="there is nothing to judge on"):
        run_gate(Store(home.models), home, GateRequest("m@v2", "m@v1", speed=False))


def test_a_built_set_judges_by_what_it_holds_out(home: Home) -> None:
    rows = [{"text": line} for line in read_domain(home)]
    build(home, "held", "text", {"train": rows[:5], "test": rows})
    request = GateRequest("m@v2", "m@v1", ["held"], speed=False, tokens=3000)
    (one,) = run_gate(Store(home.models), home, request).slices
    assert one.label == "text: held@v1"
    build(home, "judged", "kto", {"train": rows[:5]})
    for named, said in (("judged", "has kto rows"), ("none", "nor was a set of that name built")):
        with pytest.raises(EvaluationError, match=said):
            run_gate(Store(home.models), home, GateRequest("m@v2", "m@v1", [named], speed=False))
