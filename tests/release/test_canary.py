"""The judged canary and the bandit, on a real database with users that are rows of the request log."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert

from tests.parts import wait_until
from tests.release.traffic import World
from thrifty.db.ratings import read_ratings
from thrifty.db.releases import ReleaseRow, read_events
from thrifty.db.tables import request_texts
from thrifty.errors import ControlError
from thrifty.openai.conversations import choose_version
from thrifty.release.bandit import Arms, Control, find_chance_better, find_share
from thrifty.release.chances import find_chance, find_rate
from thrifty.release.conversations import Conversation
from thrifty.release.evidence import NOT_WORSE, WORSE, weigh, weigh_pairs
from thrifty.release.manage import make_weights
from thrifty.release.plan import BanditPlan, dump_plan, parse_plan

JUDGE = "tests.release.judge_of_length:rate_when_there"


def talk(world: World, count: int, good: dict[str, float], prompt: str = "What?") -> None:
    """So many conversations of one question, whose answer is good with its version's chance."""
    rows = []
    for _ in range(count):
        number, label = world.answer()
        said = "a good answer" if world.rng.random() < good[label] else "a bad answer"
        asked = json.dumps([{"role": "user", "content": prompt}])
        rows.append({"id": number, "at_s": world.clock.wall(), "prompt": asked, "answer": said})
    with world.database.begin() as connection:
        connection.execute(insert(request_texts), rows)


def turn_slowly(world: World, condition: Any, what: str) -> ReleaseRow:
    """Turns until the judge, which has a process of its own, has come so far."""
    wait_until(lambda: condition(world.turn(0.1)), timeout_s=60, what=what)
    return world.release


def start(world: World, **plan: Any) -> None:
    world.prepare()
    world.start(**{"canary": {"judge": JUDGE}, "primary": "rated", **plan})
    world.turn()
    world.clock.pass_time(2)


def test_a_version_whose_answers_are_scored_lower_is_rolled_back(world: World) -> None:
    start(world, steps=[50, 100])
    talk(world, 500, {"old": 0.9, "new": 0.3})
    world.clock.pass_time(60)
    row = turn_slowly(world, lambda row: not row.is_active, "the verdict of the judge")
    assert (row.state, row.record.verdict) == ("rolled_back", "worse")
    assert row.record.message.startswith("rated worse")
    assert world.shares() == {"old": 1.0, "new": 0.0}
    scores = read_ratings(world.database, row.id)
    assert set(scores.values()) <= {0.9, 0.3}


def test_a_judge_that_is_away_pauses_the_canary_which_keeps_its_share(
    world: World, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.touch()
    start(world, steps=[50, 100], margin=0.3)
    talk(world, 400, {"old": 0.8, "new": 0.8}, prompt=str(away))
    world.clock.pass_time(60)
    row = turn_slowly(world, lambda row: row.state == "paused", "the release to be paused")
    assert row.record.paused_by == "judge"
    assert "away" in row.record.message
    assert world.shares() == {"old": 0.5, "new": 0.5}, "it keeps its share"
    away.unlink()
    # A new controller finds what was scored, and goes on.
    world.restart()
    row = turn_slowly(world, lambda row: not row.is_active, "the release to go on")
    assert (row.state, row.record.verdict) == ("promoted", "not worse")
    assert "resume" in [one.kind for one in read_events(world.database, row.id)]


def test_few_conversations_with_the_others_are_scored_and_that_is_accounted_for() -> None:
    assert find_rate(0.01) == pytest.approx(3 * 0.01 / 0.99)
    assert find_chance(0.01) == pytest.approx(0.25, abs=0.001)
    assert find_rate(0.5) == 1
    assert find_chance(0.5) == pytest.approx(0.5)
    plan = parse_plan(
        {"canary": {"judge": JUDGE}, "primary": "rated", "steps": [5, 100], "margin": 0.1}
    )
    rng = random.Random(3)

    def rate(drop: float) -> str:
        rated = []
        for number in range(3000):
            treated = rng.random() < find_chance(0.05)
            value = float(rng.random() < (0.7 - drop if treated else 0.7))
            rated.append(Conversation(float(number), 0, treated, rated=value))
        return weigh(plan, [], [], [0.05], [], rated)["rated"].verdict

    assert rate(0.2) == WORSE
    assert rate(0.0) == NOT_WORSE


def test_what_a_plan_cannot_be() -> None:
    for plan, message in (
        ({"primary": "rated"}, r"needs 'canary\.judge'"),
        ({"canary": {"judge": "nobody"}}, "neither 'module:function' nor 'deployment:NAME'"),
        ({"bandit": {}, "steps": [50, 100]}, "'steps' or 'bandit', not both"),
        ({"bandit": {}, "primary": "judged", "shadow": {"judge": JUDGE}}, "by its control slice"),
        ({"bandit": {"control": 0.9}}, "less than or equal to 0.5"),
    ):
        with pytest.raises(ControlError, match=message):
            parse_plan(plan)
    plan = parse_plan({"bandit": {"control": 0.1}})
    assert plan.stages == ["start", "bandit", "100%"]
    assert [plan.share_of(stage) for stage in range(3)] == [0.0, 0.05, 1.0]
    assert parse_plan(dump_plan(plan)) == plan


# The bandit


def test_the_share_is_the_chance_of_being_better_within_its_bounds() -> None:
    plan = BanditPlan(control=0.2, growth=2)
    assert find_chance_better(Arms((50, 100), (50, 100)), 1) == pytest.approx(0.5, abs=0.02)
    # Two normal approximations: a difference of 10 points has an error of 6.9.
    assert find_chance_better(Arms((60, 100), (50, 100)), 1) == pytest.approx(0.92, abs=0.02)
    assert find_share(plan, Arms((90, 100), (10, 100)), 0.1, 1) == pytest.approx(0.2), (
        "it may double"
    )
    assert find_share(plan, Arms((90, 100), (10, 100)), 0.8, 1) == pytest.approx(0.9)
    assert find_share(plan, Arms((10, 100), (90, 100)), 0.8, 1) == pytest.approx(0.1)


def test_no_share_moves_the_control_slice_and_chance_splits_it_evenly(world: World) -> None:
    before = {"old": 2.0, "older": 1.0, "new": 0.0}
    control = Control(BanditPlan(control=0.2), before, "new")
    held, ours = 0, 0
    for _ in range(4000):
        one = Conversation(0.0, 0, False, name=world.name())
        if not control.holds(one):
            continue
        held += 1
        chosen = {
            choose_version(one.name, list(make_weights(before, "new", share).items()))[0] == "new"
            for share in np.linspace(0.1, 0.9, 17)
        }
        assert len(chosen) == 1, "it is on one side at every share"
        ours += chosen.pop()
    assert held / 4000 == pytest.approx(0.2, abs=0.025)
    assert ours / held == pytest.approx(0.5, abs=0.06)


def run_bandit(world: World, likes: dict[str, float], **plan: Any) -> ReleaseRow:
    world.prepare()
    bandit = {"control": 0.3, "every": "20s", "growth": 4}
    world.start(**{"bandit": bandit, "sticky": "5s", "margin": 0.15, "guards": {
        "errors": None, "ttft": None, "tpot": None, "cost": None}, **plan})  # fmt: skip
    for _ in range(60):
        if not world.turn().is_active:
            break
        world.clock.pass_time(2)
        world.people(150, likes)
        world.clock.pass_time(29)
    return world.release


def test_a_better_version_gets_most_of_the_traffic_before_it_is_promoted(world: World) -> None:
    row = run_bandit(world, {"old": 0.4, "new": 0.75})
    assert (row.state, row.record.verdict) == ("promoted", "better")
    assert row.record.message == "" or "control slice" in row.record.message
    events = read_events(world.database, row.id)
    shifts = [one.figures["share"] for one in events if one.kind == "shift"]
    assert shifts[0] > 0.15
    assert max(shifts) == pytest.approx(0.85)
    last = events[-1]
    assert "of the control slice" in last.why
    shown = last.figures["metrics"]["acceptance"]
    assert shown["candidate_count"] == pytest.approx(shown["others_count"], rel=0.35)
    assert world.shares() == {"old": 0.0, "new": 1.0}


def test_a_worse_version_keeps_to_its_control_slice_and_is_rolled_back(world: World) -> None:
    row = run_bandit(world, {"old": 0.8, "new": 0.4})
    assert (row.state, row.record.verdict) == ("rolled_back", "worse")
    events = read_events(world.database, row.id)
    assert all(one.figures["share"] < 0.5 for one in events if one.kind == "shift")
    assert world.shares() == {"old": 1.0, "new": 0.0}


def test_conversations_that_go_on_keep_their_version_whichever_way_the_share_goes(
    world: World,
) -> None:
    world.prepare()
    bandit = {"control": 0.2, "every": "20s", "growth": 10}
    world.start(bandit=bandit, sticky="1h", step={"conversations": 5, "time": 0})
    world.turn()
    world.clock.pass_time(2)
    seen = {}
    for _ in range(60):
        name = world.name()
        seen[name] = world.answer(name, liked=1.0)[1]
    world.clock.pass_time(40)
    for step, liked in enumerate((1.0, 0.0, 1.0, 0.0)):
        for _ in range(40):
            name = world.name()
            label = world.routes().choose(name).label
            chance = liked if label == "new" else 1 - liked
            seen[name] = world.answer(name, liked=chance)[1]
        world.turn(40)
        world.turn(1)
        # Everybody asks once more, after the share may have changed.
        moved = {name for name, label in seen.items() if world.routes().choose(name).label != label}
        assert not moved, f"step {step}"
        for name in seen:
            world.answer(name)
    events = read_events(world.database, world.release_id)
    shares = [one.figures["share"] for one in events if one.kind == "shift"]

    assert len(shares) >= 2


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([1] * 40 + [-1] * 6 + [0] * 42, "better"),
        ([-1] * 60 + [1] * 5 + [0] * 10, "worse"),
        ([1, 1, 1, -1] * 5 + [0] * 60, "not worse"),
        ([1, -1] * 20, "inconclusive"),
        ([0] * 5, "inconclusive"),
    ],
)
def test_the_interval_of_pairs_agrees_with_their_verdict(outcomes: list[int], verdict: str) -> None:
    found = weigh_pairs(outcomes, 0.0, 0.1, 0.005)
    assert found.verdict == verdict
    assert None not in (found.low, found.high, found.difference)
    assert found.low <= found.difference <= found.high
    assert (found.low > 0) == (verdict == "better")
    assert (found.high < 0) == (verdict == "worse")


@pytest.mark.parametrize(
    ("proof", "verdict"), [([1] * 9 + [1, 1, 0, 0], "better"), ([1, 1, 1, -1] * 5, "not worse")]
)
def test_a_pair_that_comes_late_takes_no_verdict_back(proof: list[int], verdict: str) -> None:
    """As one that was asked about before the shadow ended, and is answered afterwards."""
    outcomes = proof + [0] * next(
        n for n in range(200) if weigh_pairs(proof + [0] * n, 0.0, 0.1, 0.005).verdict == verdict
    )
    assert weigh_pairs([*outcomes, -1, -1], 0.0, 0.1, 0.005).verdict == verdict
