"""The gate: what drops too far is marked as failed, told with its reason, and not served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.control.test_plan import load, make, plan, write_model
from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.remotes.push import _collect_measurements
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.verdicts import GATE, find_failure
from thrifty.errors import EvaluationError, GateError
from thrifty.evaluate.gate import (
    ANSWERS_KEPT,
    MAX_DROP,
    Verdict,
    describe_verdict,
    drop_of_ratio,
    judge,
    record_verdict,
)
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec

SMALL = Llama(vocab=257, head_dim=16, kv_heads=2, heads=2, hidden=32, context=256, tied=False)


def given(right: int, kept: int) -> dict[str, Any]:
    return {"reference_right": right, "still_right": kept}


def test_the_drop_is_what_a_token_loses_of_its_probability() -> None:
    assert drop_of_ratio(1) == 0
    assert drop_of_ratio(0.9) == 0
    assert drop_of_ratio(1 / 0.75) == pytest.approx(0.25)


def test_the_worst_domain_and_the_answers_decide() -> None:
    assert judge({"chat": 1.3, "web": 1.1}, given(80, 61), 0.25).passed
    beyond = judge({"chat": 1.4, "web": 1.1}, given(80, 61), 0.25)
    assert beyond.failed == ["chat"]
    lost = judge({"chat": 1.4, "web": 1.1}, given(80, 20), 0.25)
    assert lost.failed == [ANSWERS_KEPT, "chat"]
    assert lost.drops[ANSWERS_KEPT] == pytest.approx(0.75)
    assert judge({}, None, 0.1, {"pairs": 0.95}).passed
    assert judge({}, None, 0.1, {"pairs": 0.85}).failed == ["pairs"]


def test_the_model_that_is_known_to_be_broken_fails_by_default() -> None:
    """A fifth pruned and distilled on passages alone: good on passages, no assistant any more."""
    verdict = judge({"passages": 1.35, "chat": 2.66}, given(16, 0), MAX_DROP)
    assert "chat" in verdict.failed
    assert "chat" in judge({"chat": 2.66}, given(60, 0), MAX_DROP).failed


def test_a_few_right_answers_say_too_little() -> None:
    verdict = judge({"chat": 1.0}, given(5, 0), 0.25)
    assert verdict.passed
    assert "has 5 right, and at least 20 are needed" in verdict.notes[0]
    with pytest.raises(EvaluationError, match="nothing to judge"):
        judge({}, given(5, 0), 0.25)


def test_a_model_that_could_not_be_asked_does_not_pass() -> None:
    verdict = judge({"chat": 1.01}, None, 0.25, unasked="no server started")
    assert not verdict.passed
    assert verdict.failed == [ANSWERS_KEPT]
    assert verdict.as_dict()["notes"] == ["the answers kept are not judged: no server started"]
    text = describe_verdict("small@v1", "smol@v1", verdict, ["prune"])
    assert "fails the gate" in text
    assert "no server started" in text
    json.dumps(verdict.as_dict(), allow_nan=False)
    beyond = judge({"chat": 2.0}, None, 0.25, unasked="no server started")
    assert set(beyond.failed) == {ANSWERS_KEPT, "chat"}
    assert "chat 50.0%" in describe_verdict("small@v1", "smol@v1", beyond, ["prune"])


def test_a_failure_says_what_drops_by_how_much_and_what_helps() -> None:
    verdict = Verdict(0.25, {"chat": 0.62, "web": 0.1, ANSWERS_KEPT: 1.0})
    text = describe_verdict("small@v1", "smol@v1", verdict, ["distill", "prune"])
    assert "fails the gate" in text
    assert "more than the 25% that are allowed: answers kept 100.0%, chat 62.0%" in text
    assert "prune less, distill for longer, learn from text of those uses" in text
    assert "web" not in text


def add(store: Store, folder: Path, name: str, seed: int, *parents: Artifact) -> Any:
    write_model(folder, replace(SMALL, seed=seed))
    lineage = Lineage(
        parents=tuple(Parent(parent.id, "x@v1") for parent in parents), recipe={"step": "prune"}
    )
    return store.add(folder, name, lineage)


def fail(store: Store, model: tuple[NamedVersion, Artifact], reference: NamedVersion) -> str:
    return record_verdict(store, *model, reference, judge({"chat": 3.0}, None, 0.25))


def test_what_is_made_from_a_failed_model_is_failed_until_it_is_judged_itself(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "models")
    root = add(store, tmp_path / "a", "root", 1)
    small = add(store, tmp_path / "b", "small", 2, root[1])
    smaller = add(store, tmp_path / "c", "smaller", 3, small[1])
    assert find_failure(store, smaller[0]) is None
    message = fail(store, small, root[0])
    assert message.startswith("small@v1 fails the gate")
    assert "prune less" in message
    assert find_failure(store, root[0]) is None
    assert find_failure(store, small[0]) == find_failure(store, smaller[0]) == message
    record_verdict(store, *smaller, root[0], judge({"chat": 1.1}, None, 0.25))
    assert find_failure(store, smaller[0]) is None
    record_verdict(store, *small, root[0], judge({"chat": 3.0}, None, 0.8))
    assert find_failure(store, small[0]) is None


def test_a_pass_clears_a_failure_only_beside_its_reference_and_on_all_that_failed(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "models")
    origin = add(store, tmp_path / "o", "origin", 4)
    root = add(store, tmp_path / "a", "root", 1, origin[1])
    small = add(store, tmp_path / "b", "small", 2, root[1])
    smaller = add(store, tmp_path / "c", "smaller", 3, small[1])

    def passed(model: Any, beside: Any, *domains: str, answers: Any = None) -> None:
        ratios = dict.fromkeys(domains, 1.0)
        record_verdict(store, *model, beside[0], judge(ratios, answers, 0.25))

    failed = judge({"chat": 3.0, "web": 3.0}, given(80, 20), 0.25)
    message = record_verdict(store, *small, root[0], failed)
    passed(smaller, small, "chat", "web", answers=given(80, 80))
    assert find_failure(store, smaller[0]) == message, "it is close to a model that failed"
    passed(small, small, "chat", "web", answers=given(80, 80))
    passed(small, root, "chat", "web")
    passed(small, root, "encyclopedia", answers=given(80, 80))
    assert find_failure(store, small[0]) == message
    assert _collect_measurements(store, smaller[0])[-1].values["message"] == message
    passed(smaller, origin, "chat", "code", "web", answers=given(5, 5))
    assert find_failure(store, smaller[0]) is None, "an earlier reference is a harder one"
    passed(small, root, "chat", "web", answers=given(80, 80))
    assert find_failure(store, small[0]) is None


def test_that_a_model_is_worse_than_what_was_made_from_it_is_not_inherited(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "models")
    root = add(store, tmp_path / "a", "root", 1)
    trained = add(store, tmp_path / "b", "trained", 2, root[1])
    smaller = add(store, tmp_path / "c", "smaller", 3, trained[1])
    message = fail(store, root, trained[0])
    assert find_failure(store, root[0]) == message
    assert find_failure(store, trained[0]) is find_failure(store, smaller[0]) is None


def test_a_newer_comparison_with_what_serves_clears_an_older_one_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    root = add(store, tmp_path / "a", "root", 1)
    small = add(store, tmp_path / "b", "small", 2, root[1])

    def compare(against: str, *, passed: bool) -> None:
        values = {"passed": passed, "failed": [] if passed else ["right: all"], "message": "worse"}
        store.record_measurement(small[1].id, GATE, {"against": against}, values)

    compare("v1", passed=False)
    record_verdict(store, *small, root[0], judge({"chat": 1.0}, None, 0.25))
    assert find_failure(store, small[0]) == "worse"
    compare("v2", passed=True)
    assert find_failure(store, small[0]) is None
    message = fail(store, small, root[0])
    compare("v3", passed=True)
    assert find_failure(store, small[0]) == message


def test_a_failed_model_is_served_only_where_that_is_accepted(home: Home, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    spec = {"model": str(model), "name": "m", "engine": "auto", "compress": "none"}
    store = Store(home.models)
    stored = fetch_model(store, str(model))
    fail(store, stored, stored[0])
    for refuse in (make, plan):
        with pytest.raises(GateError, match=r"fails the gate.*write 'accept: true'") as caught:
            refuse(home, load(tmp_path / "refused", **spec))
        assert caught.value.exit_code == 3
    spec["compress"] = {"quantize": "none", "accept": True}
    plan(home, load(tmp_path / "accepted", **spec))


def test_accepting_makes_no_pipeline_and_a_bound_does() -> None:
    assert not CompressSpec.model_validate({"accept": True}).is_pipeline
    assert CompressSpec.model_validate({"max_drop": 0.1}).is_pipeline
