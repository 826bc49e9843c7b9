"""What `auto` chooses from, and what it takes of what was measured: plain code over plain figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.engines.test_prepare import put
from thrifty.artifacts import Artifact, Store
from thrifty.control.auto import ONLY_ONE, find_auto, put_auto
from thrifty.engines.choice import (
    CHOICE,
    Candidate,
    Tried,
    decide,
    describe_choice,
    find_choice,
    list_candidates,
)
from thrifty.engines.machine import detect_machine
from thrifty.home import Home
from thrifty.spec import LoadedSpec, LoadedVersion, Spec, parse_spec

MACHINE = detect_machine()
INT8, NONE, INT4 = (Candidate("openvino", scheme) for scheme in ("int8", "none", "int4"))
GUESSES = Candidate("openvino", "int8", (("speculation", "prompt_lookup"),))
PLAIN = Candidate("openvino", "int8", (("speculation", "none"),))


def make_spec(**changes: Any) -> Spec:
    return parse_spec(changes).spec


def tried(candidate: Candidate, *speeds: float, **changes: Any) -> Tried:
    """One round for each of `speeds`."""
    return Tried(candidate, tuple({"8": speed} for speed in speeds), **changes)


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.models)


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return put(store)[1]


def test_the_fastest_is_taken_and_equals_go_by_rank() -> None:
    spec = make_spec(engine="openvino")
    choice = decide([tried(INT8, 90, 91), tried(NONE, 100, 104)], spec)
    assert choice is not None
    assert choice.candidate == NONE
    assert choice.reason == (
        "measured here: 102 tokens/s at 8 streams; openvino int8 90 tokens/s at 8 streams"
    )
    for speeds, taken in (((100, 99), INT8), ((98.1, 98.1), INT8), ((97, 97), NONE)):
        choice = decide([tried(INT8, *speeds), tried(NONE, 100, 99)], spec)
        assert choice is not None
        assert choice.candidate == taken
    # The geometric mean over the loads decides.
    mean = [
        Tried(INT8, ({"1": 10.0, "8": 90.0},)), Tried(NONE, ({"1": 40.0, "8": 40.0},)),
    ]  # fmt: skip
    found = decide(mean, spec)
    assert found is not None
    assert found.candidate == NONE


def test_what_failed_or_was_beaten_early_is_not_taken() -> None:
    spec = make_spec(engine="openvino")
    failed = Tried(INT8, ({"8": 500.0},), failed="it ended under the load")
    choice = decide([failed, tried(NONE, 100, 100)], spec)
    assert choice is not None
    assert choice.candidate == NONE
    assert "openvino int8 failed: it ended under the load" in choice.reason
    assert choice.measured[0]["failed"] == "it ended under the load"
    choice = decide([tried(INT8, 60), tried(NONE, 100, 50, 50)], spec)
    assert choice is not None
    assert choice.candidate == NONE
    assert decide([failed, Tried(NONE)], spec) is None


def test_four_bits_are_taken_only_where_the_spec_accepts_it() -> None:
    speeds = [tried(INT8, 100), tried(NONE, 50), tried(INT4, 200)]
    choice = decide(speeds, make_spec(engine="openvino"))
    assert choice is not None
    assert choice.candidate == INT8
    assert "openvino int4 is faster and can cost much quality" in choice.reason
    for compress in ({"quantize": "auto", "accept": True}, "int4"):
        choice = decide(speeds, make_spec(engine="openvino", compress=compress))
        assert choice is not None
        assert choice.candidate == INT4


def test_speculation_is_taken_with_the_bounds_within_which_it_pays() -> None:
    spec = make_spec(engine={"kind": "openvino", "speculation": "auto"}, load=4)
    slower = decide([tried(PLAIN, 100), tried(GUESSES, 101, tokens_per_step=2.0)], spec)
    assert slower is not None
    assert slower.candidate == PLAIN
    faster = decide([tried(PLAIN, 100), tried(GUESSES, 160, tokens_per_step=3.2)], spec)
    assert faster is not None
    assert dict(faster.candidate.options) == {
        "speculation": "prompt_lookup", "speculation_least": 2.0, "speculation_streams": 4,
    }  # fmt: skip
    assert faster.candidate.put_into(spec).engine.options["speculation_least"] == 2.0
    assert str(faster.candidate) == "openvino int8 with prompt_lookup"


def test_candidates_are_what_can_serve_the_model(artifact: Artifact) -> None:
    both = list_candidates(make_spec(engine="openvino"), artifact, MACHINE)
    assert both.able == (INT8, NONE, INT4)
    fixed = list_candidates(make_spec(engine="openvino", compress="int4"), artifact, MACHINE)
    assert fixed.able == (INT4,)
    guesses = make_spec(engine={"kind": "openvino", "speculation": "auto"}, compress="int8")
    assert list_candidates(guesses, artifact, MACHINE).able == (PLAIN, GUESSES)
    wrong = make_spec(engine={"kind": "openvino", "context": 100_000})
    found = list_candidates(wrong, artifact, MACHINE)
    assert found.able == ()
    assert "made for at most 256" in found.unable[0][1]
    ranked = list_candidates(make_spec(), artifact, MACHINE).able
    assert ranked[0] == INT8
    kinds = [one.engine for one in ranked]
    assert kinds == sorted(kinds, key=kinds.index)
    assert "echo" not in kinds


def test_each_way_to_guess_ahead_is_a_candidate_of_its_own(artifact: Artifact) -> None:
    options = {"kind": "llamacpp", "speculation": "auto", "draft_model": "small"}
    spec = make_spec(engine=options, compress="int8")
    able = list_candidates(spec, artifact, MACHINE).able
    assert [dict(one.options)["speculation"] for one in able] == ["none", "draft", "prompt_lookup"]
    kept = [one.put_into(spec).engine.options.get("draft_model") for one in able]
    assert kept == [None, "small", None]
    del options["draft_model"]
    able = list_candidates(make_spec(engine=options, compress="int8"), artifact, MACHINE).able
    assert [dict(one.options)["speculation"] for one in able] == ["none", "prompt_lookup"]


def test_an_engine_that_is_not_installed_is_left_out_and_said_so(artifact: Artifact) -> None:
    found = list_candidates(make_spec(engine="auto", compress="none"), artifact, MACHINE)
    assert {one.engine for one in found.able} == {"openvino", "llamacpp"}
    (reason,) = [why for one, why in found.unable if one.engine == "vllm"]
    assert reason.startswith("it is not installed: thrifty engines install vllm")


def test_memory_that_is_short_now_makes_no_other_choice(artifact: Artifact) -> None:
    spec = make_spec(engine="openvino", replicas=1024)
    assert list_candidates(spec, artifact, MACHINE).able == (INT8, NONE, INT4)


def test_a_choice_holds_for_what_it_depends_on(store: Store, artifact: Artifact) -> None:
    spec = make_spec(engine="openvino", load=8)
    conditions = describe_choice(spec, MACHINE, list_candidates(spec, artifact, MACHINE).able)
    choice = decide([tried(INT8, 90), tried(NONE, 100)], spec)
    assert choice is not None
    store.record_measurement(artifact.id, CHOICE, conditions, choice.to_builtins())
    assert find_choice(spec, store, artifact, MACHINE) == choice
    others: list[dict[str, Any]] = [
        {"load": 1}, {}, {"load": {"streams": 8, "prompt_tokens": 65}},
        {"load": {"streams": 8, "copying": 1}}, {"load": 8, "compress": "int8"},
        {"load": 8, "engine": {"kind": "openvino", "prefill_chunk": 512}},
    ]  # fmt: skip
    for other in others:
        spec = make_spec(**{"engine": "openvino", **other})
        assert find_choice(spec, store, artifact, MACHINE) is None
    newer = {**conditions, "engines": [{**conditions["engines"][0], "engine": "openvino 1999.1"}]}
    again = Store(store.root)
    again.record_measurement(artifact.id, CHOICE, newer, {**choice.to_builtins(), "scheme": "int8"})
    assert find_choice(make_spec(engine="openvino", load=8), store, artifact, MACHINE) == choice


def test_nothing_is_measured_unless_the_spec_asks(store: Store, artifact: Artifact) -> None:
    quiet: list[dict[str, Any]] = [
        {}, {"engine": "openvino"}, {"engine": "auto", "benchmark": 0}, {"load": 8, "benchmark": 0}
    ]  # fmt: skip
    for written in quiet:
        found = find_auto(make_spec(**written), store, artifact, MACHINE)
        assert (found.choice, found.to_measure, found.first) == (None, None, "openvino")
    asking: list[dict[str, Any]] = [
        {"engine": "auto"}, {"load": 8}, {"benchmark": "10s"},
        {"engine": {"kind": "openvino", "speculation": "auto"}, "compress": "int8"},
    ]  # fmt: skip
    for written in asking:
        found = find_auto(make_spec(**written), store, artifact, MACHINE)
        assert found.choice is None
        assert found.to_measure is not None
        assert found.to_measure.able[0].engine == "openvino"
    nothing: list[dict[str, Any]] = [
        {"engine": "openvino", "compress": "int8", "load": 8},
        {"engine": "auto", "compress": {"quantize": {"scheme": "int4", "bits": 5}}},
    ]
    for written in nothing:
        found = find_auto(make_spec(**written), store, artifact, MACHINE)
        assert (found.choice, found.to_measure, found.first) == (None, None, None)


def test_one_that_is_alone_is_taken_unmeasured(store: Store, artifact: Artifact) -> None:
    spec = make_spec(engine="auto", compress="w7a8")
    able = list_candidates(spec, artifact, MACHINE).able
    if len(able) != 1 or spec.compress.is_pipeline:
        spec = make_spec(engine={"kind": "auto", "activation_group": 32}, compress="none")
    found = find_auto(spec, store, artifact, MACHINE)
    assert found.choice is not None
    assert found.choice.reason == ONLY_ONE
    version = LoadedVersion(LoadedSpec(spec, "test"))
    assert put_auto(version, found).loaded.spec.engine.kind == "openvino"


def test_an_engine_without_speculation_serves_where_it_is_left_to_auto() -> None:
    spec = make_spec(engine={"kind": "auto", "speculation": "auto"})
    assert Candidate("echo", "none").put_into(spec).engine.options == {}
    kept = Candidate("echo", "none").put_into(
        make_spec(engine={"kind": "auto", "speculation": "prompt_lookup"})
    )
    assert kept.engine.options == {"speculation": "prompt_lookup"}
    assert dataclasses.asdict(INT8)["engine"] == "openvino"
