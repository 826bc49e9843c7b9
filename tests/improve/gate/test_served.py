"""The way of a version, with a real engine: trained, asked by the gate, passed or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prompt import make_special_tokenizer
from tests.text import templates
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.verdicts import find_failure
from thrifty.evaluate.gate_record import verify_record
from thrifty.evaluate.questions import SHORT_REQUEST
from thrifty.home import Home
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.run import run_gate
from thrifty.train.request import TrainingRequest
from thrifty.train.rows import Method
from thrifty.train.run import train_model

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

MODEL = Llama(
    vocab=264, layers=2, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=512
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_version_is_trained_and_serves_what_it_learned(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    store = Store(home.models)
    with store.stage("base") as stage:
        folder = MODEL.write_safetensors(stage / "model", eos_token_id=257)
        make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        store.add(folder, "base", Lineage())
    rng = np.random.default_rng(4)
    words = ["".join(map(chr, rng.integers(97, 123, 3))) for _ in range(400)]
    asked = [" ".join(rng.choice(words, 8)) + "?" for _ in range(140)]
    rows = [
        {"messages": [{"role": "user", "content": f"{question} {SHORT_REQUEST}"},
                      {"role": "assistant", "content": "Aye aye"}]}
        for question in asked[:64]
    ]  # fmt: skip
    request = TrainingRequest(
        "base", write(tmp_path / "rows.jsonl", rows), Method.SFT, "mate", epochs=6, lora_rank=8,
        learning_rate=2e-2, window=256,
    )  # fmt: skip
    version, _ = train_model(store, home, request)
    assert version.lineage.figures["after"] < 0.1
    questions = [
        {"question": question, "answers": ["Aye aye"], "topic": "old" if n < 64 else "new"}
        for n, question in enumerate(asked)
    ]
    data = str(write(tmp_path / "questions.jsonl", questions))
    judged = GateRequest(
        version.label, "base", [data], speed=False, judge="tests.improve.gate.judges:prefer_aye"
    )
    better = run_gate(store, home, judged)
    assert better.passed, better.message
    right = next(one for one in better.slices if one.label == "right: all")
    assert right.candidate > 0.9
    assert right.against == 0
    preferred = next(one for one in better.slices if one.label == "preferred: all")
    assert (preferred.outcome, preferred.candidate) == ("not worse", 1)
    assert preferred.difference > 0.9
    assert json.loads(better.record.read_text())["judge"] == judged.judge
    # What it was trained on is found, and no part of the verdict.
    assert right.count == len(asked) - 64
    assert any("left out" in note for note in better.notes)
    worse = run_gate(store, home, GateRequest("base", version.label, [data], speed=True))
    assert not worse.passed
    failed = next(one for one in worse.slices if one.label == "right: all")
    assert failed.outcome == "worse"
    assert failed.examples[0]["against"].startswith("Aye aye")
    assert "tokens/s at 1 streams" in worse.speed
    assert find_failure(store, store.find("base")[0]) is not None
    assert find_failure(store, version) is None
    assert not verify_record(home, store, worse.record).faults
