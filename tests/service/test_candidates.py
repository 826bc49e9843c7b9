"""`auto` decides by measurement: candidates take turns, each fails alone, and nothing is repeated."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prepare import MODEL, put
from tests.parts import wait_until
from thrifty import choice_benchmark
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.choice_benchmark import ChoiceRequest, measure_choice
from thrifty.compress.pipeline import run_pipeline
from thrifty.control.auto import find_auto
from thrifty.engines.choice import Candidate, find_choice, list_candidates, list_choices
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import OpenVinoEngine
from thrifty.engines.scheme_choice import CANDIDATE, choose_scheme
from thrifty.errors import BenchError
from thrifty.fleet.process import find_ours
from thrifty.home import Home
from thrifty.spec import Spec
from thrifty.spec.compress import CompressSpec
from thrifty.types import Progress, ignore_progress

pytestmark = pytest.mark.service

MACHINE = detect_machine()
SPEC: dict[str, Any] = {
    "engine": {"kind": "openvino"}, "benchmark": 3,
    "load": {"streams": 2, "prompt_tokens": 8, "output_tokens": 24},
}  # fmt: skip


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.models)


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_benchmark, "ROUNDS", 1)


def put_tiny(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store, dataclasses.replace(MODEL, context=2048))


def make_request(store: Store, **changes: Any) -> ChoiceRequest:
    return ChoiceRequest(*put_tiny(store), Spec.model_validate({**SPEC, **changes}))


def read_candidates(store: Store, artifact: Artifact) -> list[Measurement]:
    return [one for one in store.read_measurements(artifact.id) if one.kind == CANDIDATE]


def test_candidates_take_turns_and_what_was_decided_is_kept(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_benchmark, "ROUNDS", 2)
    request = make_request(store)
    steps: list[str] = []

    def note(step: Progress) -> None:
        if step.step.startswith("round") and step.step not in steps:
            steps.append(step.step)

    choice = measure_choice(request, store, home, MACHINE, note)
    assert steps[:3] == [f"round 1: openvino {form}" for form in ("int8", "as it is", "int4")]
    # The second round begins at the other end, with what was not beaten by far.
    second = [step.removeprefix("round 2: ") for step in steps if step.startswith("round 2")]
    assert second == sorted(second, key=lambda name: -steps.index(f"round 1: {name}"))
    assert choice.candidate in (Candidate("openvino", "int8"), Candidate("openvino", "none"))
    assert choice.reason.startswith("measured here: ")
    assert {row["scheme"] for row in choice.measured} == {"int8", "none", "int4"}
    assert all(row["tokens_per_s"]["2"] > 0 for row in choice.measured)
    for one in read_candidates(store, request.artifact):
        assert one.conditions["machine"] == MACHINE.id
        assert one.conditions["features"] == sorted(OpenVinoEngine().find_features(MACHINE))
    assert not find_ours(home.root)

    # It is found again, by plans too, and nothing is measured.
    assert measure_choice(request, store, home, MACHINE, pytest.fail) == choice
    assert find_auto(request.spec, store, request.artifact, MACHINE).choice == choice
    (kept,) = list_choices(store, MACHINE)
    assert (kept.choice, kept.load["streams"]) == (choice, [2])
    # What was measured decides other loads, too, where nobody asks to measure them.
    other = request.spec.model_copy(update={"load": Spec().load})
    assert find_choice(other, store, request.artifact, MACHINE) is None
    found = choose_scheme(OpenVinoEngine(), store, request.artifact, MACHINE)
    assert found.reason.startswith("measured here with this model: int8")
    # Another machine and other options are other choices.
    elsewhere = dataclasses.replace(MACHINE, processor="Another")
    assert find_choice(request.spec, store, request.artifact, elsewhere) is None
    assert list_choices(store, elsewhere) == []
    changed = make_request(store, engine={"kind": "openvino", "kv_precision": "f16"})
    assert find_choice(changed.spec, store, changed.artifact, MACHINE) is None

    prepared = next(v for v in store.versions() if v.name == "tiny-int8-openvino")
    graph = store.load(prepared.artifact)
    with pytest.raises(BenchError, match="name the checkpoint"):
        measure_choice(ChoiceRequest(prepared, graph, Spec()), store, home, MACHINE)


@pytest.mark.usefixtures("one_round")
def test_a_candidate_that_crashes_fails_alone(home: Home, store: Store) -> None:
    request = make_request(store)
    killed: list[int] = []

    def kill_replica() -> None:
        wait_until(lambda: find_ours(home.root))
        for ident, _, _ in find_ours(home.root):
            killed.append(ident.pid)
            os.kill(ident.pid, signal.SIGKILL)

    def crash(step: Progress) -> None:
        if step.step == "round 1: openvino int8" and step.done == 0:
            threading.Thread(target=kill_replica).start()

    choice = measure_choice(request, store, home, MACHINE, crash)
    assert killed
    assert choice.candidate == Candidate("openvino", "none")
    (row,) = [row for row in choice.measured if row["scheme"] == "int8"]
    assert row["failed"]
    assert row["says"].startswith("failed: ")
    assert "int8 failed: " in choice.reason
    assert not find_ours(home.root)


def test_a_candidate_that_hangs_fails_alone(home: Home, store: Store) -> None:
    request = make_request(store, compress="int8")
    with pytest.raises(BenchError, match=r"could be measured \(openvino int8: it did not finish"):
        measure_choice(request, store, home, MACHINE, hang_s=0.001)
    assert not find_ours(home.root)


_MEASURE = """
import sys
from pathlib import Path
from tests.service.test_candidates import MACHINE, make_request
from thrifty.artifacts import Store
from thrifty.choice_benchmark import measure_choice
from thrifty.home import Home
home = Home(Path(sys.argv[1]))
store = Store(home.models)
measure_choice(make_request(store), store, home, MACHINE, lambda step: print(step.step, step.done, flush=True))
"""


@pytest.mark.usefixtures("one_round")
def test_a_killed_benchmark_goes_on_where_it_was(home: Home, store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURE, str(home.root)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round 1: openvino as it is"):
                break
        request = make_request(store)
        wait_until(lambda: len(read_candidates(store, request.artifact)) == 2)
        process.kill()
    before, cut = read_candidates(store, request.artifact)
    assert (cut.values["rounds"], cut.values["begun"]) == ([], 1)
    # What was measured in two benchmarks that ended so is tried no further.
    (first, *_) = list_candidates(request.spec, request.artifact, MACHINE).able[2:]
    conditions = {**before.conditions, "scheme": first.scheme}
    deadly = {**cut.values, "begun": 2}
    store.record_measurement(request.artifact.id, CANDIDATE, conditions, deadly)
    steps: list[str] = []
    choice = measure_choice(request, store, home, MACHINE, lambda step: steps.append(step.step))
    assert choice.measured[2]["failed"] == "the benchmark ended 2 times while it was measured"
    assert "round 1: openvino int8" not in steps
    assert "round 1: openvino as it is" in steps
    after = next(
        one for one in read_candidates(store, request.artifact)
        if one.conditions == before.conditions
    )  # fmt: skip
    assert after.values["rounds"][0] == before.values["rounds"][0]


def test_the_time_bounds_what_is_measured(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_benchmark, "LEAST_WINDOW_S", 0.1)
    request = make_request(store, benchmark="1ms")
    choice = measure_choice(request, store, home, MACHINE)
    assert [row["rounds"] for row in choice.measured] == [1, 0, 0]
    assert choice.candidate == Candidate("openvino", "int8")
    assert "not measured: the time was over" in choice.reason


def test_where_16_bits_are_faster_auto_leaves_them(
    home: Home, tmp_path: Path, store: Store
) -> None:
    """By what is recorded: nothing is measured."""
    from thrifty.engines.scheme_choice import make_machine_conditions

    source = put(store)
    for scheme, speed in (("none", 9.0), ("int8", 3.0)):
        conditions = {**make_machine_conditions(OpenVinoEngine(), MACHINE), "scheme": scheme}
        values = {"tokens_per_s": {"1": speed}}
        store.record_measurement(source[1].id, CANDIDATE, conditions, values)
    told: list[str] = []
    text = tmp_path / "text.txt"
    text.write_text("Some other words of which there are enough. " * 100)
    learned = tmp_path / "learned.txt"
    learned.write_text("It was the best of times, it was the worst of times. " * 100)
    compress = CompressSpec.model_validate({"held_out": str(text), "text": str(learned)})
    found = run_pipeline(
        compress, source, store=store, home=home, on_stage=told.append, on_progress=ignore_progress
    )
    assert found.result == source
    assert not found.stages
    assert told == [
        "quantize: auto is none here; measured here with this model: int8 3 tokens/s at 1 streams; "
        "none 9 tokens/s at 1 streams"
    ]
