"""Releases that guards alone decide."""

from __future__ import annotations

import pytest

from tests.release.traffic import PLAN, World
from thrifty.db.releases import read_events
from thrifty.errors import ControlError
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
    assert all(None not in (one["low"], one["high"]) for one in times)


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
