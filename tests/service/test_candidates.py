"""Candidates are measured once on a machine, found again, and decided by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.engines.test_prepare import MODEL, put
from thrifty.artifacts import Store
from thrifty.bench import check
from thrifty.compress.pipeline import run_pipeline
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import OpenVinoEngine
from thrifty.engines.scheme_choice import CANDIDATE, choose_scheme
from thrifty.errors import BenchError
from thrifty.fleet.process import find_ours
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec
from thrifty.speed_benchmark import Candidate, measure_candidates
from thrifty.types import Format

pytestmark = pytest.mark.service


def test_candidates_are_measured_kept_and_decided_by(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SECONDS", 0.4)
    store, machine = Store(home.models), detect_machine()
    version, artifact = put(store, dataclasses.replace(MODEL, context=2048))
    candidates = (Candidate("none"), Candidate("int8"))
    found = measure_candidates(
        store, home, version, artifact, machine, candidates=candidates, loads=(1, 4)
    )
    assert [one.conditions["scheme"] for one in found] == ["none", "int8"]
    for one in found:
        assert set(one.values["tokens_per_s"]) == {"1", "4"}
        assert min(one.values["tokens_per_s"].values()) > 0
        assert one.conditions["machine"] == machine.id
        assert one.conditions["features"] == sorted(OpenVinoEngine().find_features(machine))
    assert not find_ours(home.root)
    again = measure_candidates(
        store, home, version, artifact, machine, candidates=candidates, loads=(1, 4)
    )
    assert again == found
    choice = choose_scheme(OpenVinoEngine(), store, artifact, machine)
    assert choice.reason.startswith("measured here with this model: int8")
    prepared = next(v for v in store.versions() if v.name == "tiny-int8-openvino")
    graph = store.load(prepared.artifact)
    assert graph.description.format is Format.OPENVINO
    with pytest.raises(BenchError, match="name the checkpoint"):
        measure_candidates(store, home, prepared, graph, machine)


def test_where_16_bits_are_faster_auto_leaves_them(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is recorded: nothing is measured."""
    from thrifty.engines.scheme_choice import make_machine_conditions

    store, machine = Store(home.models), detect_machine()
    source = put(store)
    for scheme, speed in (("none", 9.0), ("int8", 3.0)):
        conditions = {**make_machine_conditions(OpenVinoEngine(), machine), "scheme": scheme}
        values = {"tokens_per_s": {"1": speed}}
        store.record_measurement(source[1].id, CANDIDATE, conditions, values)
    told: list[str] = []
    text = tmp_path / "text.txt"
    text.write_text("Some other words of which there are enough. " * 100)
    learned = tmp_path / "learned.txt"
    learned.write_text("It was the best of times, it was the worst of times. " * 100)
    compress = CompressSpec.model_validate({"held_out": str(text), "text": str(learned)})
    found = run_pipeline(compress, source, store=store, home=home, on_stage=told.append)
    assert found.result == source
    assert not found.stages
    assert told == [
        "quantize: auto is none here; measured here with this model: int8 3 tokens/s at 1 streams; "
        "none 9 tokens/s at 1 streams"
    ]
