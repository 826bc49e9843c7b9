"""The paired shadow, on a real database with users that are rows of the request log."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.running import want
from tests.release.traffic import PLAN, World
from thrifty.control.service_api import Actor, look_at_rollback, roll_back, set_traffic
from thrifty.db.desired import read_desired
from thrifty.db.fleet import read_fleet
from thrifty.db.releases import read_outcomes, save_outcomes
from thrifty.errors import ControlError
from thrifty.evaluate.judges import SILENT
from thrifty.release.manage import resume_release
from thrifty.release.plan import parse_plan

ANN = Actor("ann (test)")
JUDGE = {"shadow": {"judge": "tests.release.judge_of_length:prefer_longer", "pairs": 200}}


def test_the_shadow_decides_before_any_user_sees_it(world: World) -> None:
    world.prepare()
    world.start(**JUDGE)
    assert world.turn().record.stage == 1
    (row,) = [v for v in read_desired(world.database).deployments["m"].versions if v.shadow]
    assert (row.label, row.shadow) == ("new", 1.0)
    for place in range(40):
        world.shadow(
            f"question {place}", "a long answer", "short" if place % 8 else "a much longer answer"
        )
    found = wait_for(world, lambda row: not row.is_active)
    assert (found.state, found.record.verdict) == ("rolled_back", "worse")
    assert "judged worse" in found.record.message
    assert world.shares() == {"old": 1.0, "new": 0.0}
    outcomes = [one for _, _, one in read_outcomes(world.database, found.id)]
    assert set(outcomes) <= {1, -1}
    assert not any(v.shadow for v in read_desired(world.database).deployments["m"].versions)


def test_a_new_controller_weighs_pairs_in_the_order_in_which_they_came(world: World) -> None:
    """A pair that came late stays the last: what was proved before it stands."""
    world.prepare()
    world.start(**JUDGE)
    proved, late = [(100 + number, number, None, 1) for number in range(20)], (50, 50, None, -1)
    save_outcomes(world.database, world.release_id, proved)
    save_outcomes(world.database, world.release_id, [late])
    world.restart()
    world.turn()
    assert world.watch is not None
    assert world.watch._judging.outcomes == [*[1] * 20, -1]


def test_a_copy_that_fails_is_lost_without_a_judge(world: World) -> None:
    world.prepare()
    world.start(**JUDGE)
    world.turn()
    for _ in range(30):
        world.shadow("q", "answer", "", status=500)
    assert wait_for(world, lambda row: not row.is_active).record.verdict == "worse"


def test_a_judge_that_prefers_a_place_promotes_nothing(world: World) -> None:
    world.prepare()
    judge = "tests.release.judge_of_length:prefer_first"
    world.start(shadow={"judge": judge}, steps=[100], margin=0.4)
    world.turn()
    for place in range(25):
        world.shadow(f"question {place}", "an answer", f"answer {place}")
    row = wait_for(world, lambda row: row.state != "running")
    assert (row.state, row.record.verdict, row.record.paused_by) == ("paused", None, "release")
    assert re.search(r"said nothing usable (\d+) of \1 times", row.record.message)
    assert world.shares() == {"old": 1.0, "new": 0.0}
    figures = world.watch._evidence.as_dict()  # type: ignore[union-attr]
    seen = read_outcomes(world.database, row.id)
    assert {one for _, _, one in seen} == {SILENT}
    assert figures["metrics"]["judged"]["candidate_count"] == 0
    # It has another chance once an operator resumes, and another controller counts the same.
    resume_release(world.database, row.id, who="ann")
    world.restart()
    world.turn()
    figures = world.watch._evidence.as_dict()  # type: ignore[union-attr]
    assert figures["silent_pairs"] == figures["pairs"] >= len(seen)
    for place in range(25):
        world.shadow(f"question {place}", "an answer", f"other {place}")
    assert wait_for(world, lambda row: row.state == "paused").record.paused_by == "release"


def test_equal_answers_are_ties_that_no_judge_has_to_give(world: World) -> None:
    world.prepare()
    judge = "tests.release.judge_of_length:prefer_first"
    world.start(shadow={"judge": judge}, steps=[100], margin=0.4)
    world.turn()
    for place in range(60):
        world.shadow(f"question {place}", "an answer", "an answer")
    row = wait_for(world, lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("promoted", "not worse")


def test_a_judge_that_is_away_pauses_it_and_is_taken_back(world: World, tmp_path: Path) -> None:
    flag = tmp_path / "away"
    flag.touch()
    world.prepare()
    world.start(shadow={"judge": "tests.release.judge_of_length:prefer_when_there", "pairs": 200})
    world.turn()
    world.shadow(str(flag), "a", "bb")
    row = wait_for(world, lambda row: row.state == "paused")
    assert "the judge" in row.record.message
    assert row.record.paused_by == "judge"
    assert world.shares() == {"old": 1.0, "new": 0.0}
    flag.unlink()
    assert wait_for(world, lambda row: row.state == "running").record.message == ""


def wait_for(world: World, condition):  # type: ignore[no-untyped-def]
    """Turns until the judge, which has a process of its own, has come so far."""
    until_s = time.monotonic() + 90
    while time.monotonic() < until_s:
        if condition(row := world.turn()):
            return row
        time.sleep(0.05)
    raise AssertionError(f"it did not come to that: {world.release}")


def test_a_judge_needs_texts(world: World) -> None:
    world.prepare(texts=False)
    with pytest.raises(ControlError, match=r"set record\.prompts"):
        world.start(**JUDGE)
    assert parse_plan(PLAN).stages == ["start", "25%", "100%"]


def read_copies(world: World) -> dict[str, float]:
    """The shares of copies, as they are desired and as gateways read them."""
    desired = {
        one.label: one.shadow for one in read_desired(world.database).deployments["m"].versions
    }
    (row,) = read_fleet(world.database).deployments
    assert {one.label: one.shadow for one in row.versions} == desired
    return desired


def test_one_that_is_ended_in_its_shadow_copies_nothing_more(world: World) -> None:
    world.prepare()
    world.start(**JUDGE)
    world.turn()
    assert read_copies(world) == {"old": 0.0, "new": 1.0}
    set_traffic(world.database, "m", {"old": 2}, ANN, force=True)
    assert world.release.state == "ended"
    assert read_copies(world) == {"old": 0.0, "new": 0.0}
    # By weights that change in any other way, too.
    world.start(**JUDGE)
    world.turn()
    state = read_desired(world.database).deployments["m"]
    versions = tuple(replace(one, weight=3.0) for one in state.versions)
    want(world.database, replace(state, versions=versions))
    assert world.turn().state == "ended"
    assert read_copies(world) == {"old": 0.0, "new": 0.0}
    assert world.shares() == {"old": 0.5, "new": 0.5}
    # What is taken back is the change of weights, and no copies come back with those before.
    assert "(apply, " in look_at_rollback(world.database, "m").takes_back
    roll_back(world.database, "m", ANN)
    assert world.shares() == {"old": 1.0, "new": 0.0}
    assert read_copies(world) == {"old": 0.0, "new": 0.0}
