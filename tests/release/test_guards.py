"""Releases that guards alone decide."""

from __future__ import annotations

import math
import random

import pytest

from tests.release.traffic import PLAN, World
from thrifty.db.releases import read_events
from thrifty.errors import ControlError
from thrifty.release.conversations import Conversation
from thrifty.release.decision import Decision, Situation, decide
from thrifty.release.evidence import BLOCK_S, Evidence, weigh
from thrifty.release.plan import parse_plan


def test_guards_decide_where_nobody_says_what_answers_are_worth(world: World) -> None:
    world.prepare(family="encoder")
    world.start()
    assert world.release.record.plan["primary"] == "guards"
    world.turn()
    world.clock.pass_time(2)
    world.people(10, {})
    assert world.turn().is_active  # too few conversations yet
    world.people(200, {})
    assert world.turn(5).is_active, "times cannot tell yet"
    for _ in range(25):
        world.people(20, {})
        if not world.turn(20).is_active:
            break
    row = world.release
    assert (row.state, row.record.verdict) == ("promoted", "nothing worse")
    event = read_events(world.database, row.id)[-1]
    assert "no guard is worse" in event.why
    times = [event.figures["metrics"][name] for name in ("ttft", "tpot")]
    assert all(one["high"] < 0.15 for one in times)


def test_guards_that_cannot_tell_by_the_end_of_the_budget_are_inconclusive(world: World) -> None:
    world.prepare(family="encoder")
    world.start(budget={"time": "2m"})
    world.turn()
    world.clock.pass_time(2)
    world.people(200, {})
    assert world.turn(5).is_active
    row = world.turn_until(lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("rolled_back", "inconclusive")


def test_guards_that_are_null_are_not_looked_at() -> None:
    plan = parse_plan({"primary": "guards", "guards": {"errors": None}})
    assert list(plan.metrics) == ["acceptance", "ttft", "tpot", "cost"]
    none = dict.fromkeys(("acceptance", "judged", "rated", "errors", "ttft", "tpot", "cost"))
    with pytest.raises(ControlError, match="needs a guard, and all are null"):
        parse_plan({"primary": "guards", "guards": none})
    with pytest.raises(ControlError, match="needs a guard, and all are null"):
        parse_plan({"guards": none}).suit("encoder")
    # Nobody judges: what only a judge could measure guards nothing.
    unjudged = {**none, "judged": 0.0, "rated": 0.0}
    with pytest.raises(ControlError, match="needs a guard"):
        parse_plan({"primary": "guards", "guards": unjudged})


def test_guards_that_decide_roll_back(world: World) -> None:
    world.prepare()
    world.start(primary="guards", step={"conversations": 400, "time": 0})
    world.turn()
    world.clock.pass_time(2)
    world.people(400, {}, fails={"new": 0.3})
    row = world.turn_until(lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("rolled_back", "worse")
    assert row.record.message.startswith("errors worse")


def test_what_a_plan_says_holds_for_every_family() -> None:
    assert parse_plan(PLAN).suit("encoder").primary == "guards"
    assert parse_plan({**PLAN, "primary": "acceptance"}).suit("encoder").primary == "acceptance"
    assert parse_plan(PLAN).suit("decoder").primary is None


BLOCKS, PER_BLOCK, SHARE, SPREAD = 600, 20, 0.25, 0.6
"""Of the simulated canary: conversations in 15 seconds, and the standard deviation of log times."""


def simulate(slower: float, seed: int) -> Decision | None:
    """What guards decide of a candidate whose first tokens take `slower` times as long."""
    plan = parse_plan({**PLAN, "primary": "guards"})
    rng, measured, decision = random.Random(seed), [], None
    for block in range(BLOCKS):
        for place in range(PER_BLOCK):
            treated = rng.random() < SHARE
            ttft = rng.gauss(0.0, SPREAD) + math.log(slower) * treated
            times = {"log_ttft": [ttft], "log_tpot": [rng.gauss(0.0, 0.2)]}
            at_s = (block + place / PER_BLOCK) * BLOCK_S
            measured.append(Conversation(at_s, 0, treated, requests=1, **times))
        if block % 5:
            continue
        candidates = sum(one.treated for one in measured)
        situation = Situation(
            stage=1, active_s=block * BLOCK_S, stage_s=block * BLOCK_S,
            stage_candidates=candidates, ready=True,
        )  # fmt: skip
        metrics = weigh(plan, measured, [], [SHARE, 1.0], [])
        decision = decide(plan, situation, Evidence(metrics))
        if decision is not None:
            break
    return decision


@pytest.mark.parametrize("seed", range(5))
def test_a_version_that_may_be_far_slower_than_tolerated_is_not_promoted(seed: int) -> None:
    slower = simulate(1.3, seed)
    assert slower is not None
    assert (slower.act, slower.verdict) == ("roll_back", "worse")
    assert slower.why.startswith("ttft worse")


@pytest.mark.parametrize("seed", range(5))
def test_an_equal_version_is_promoted_once_a_loss_is_ruled_out(seed: int) -> None:
    equal = simulate(1.0, seed)
    assert equal is not None
    assert (equal.act, equal.verdict) == ("promote", "nothing worse")
