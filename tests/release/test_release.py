"""Releases on a real database, with users that are rows of the request log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sqlalchemy import insert, select

from tests.control.running import echo, want
from tests.release.traffic import World
from thrifty.control.service_api import Actor, read_traffic, roll_back, set_traffic
from thrifty.db.audit import verify_audit
from thrifty.db.changes import note_change
from thrifty.db.desired import read_desired, read_history
from thrifty.db.fleet import read_fleet
from thrifty.db.releases import (
    HeldConversations,
    drop_held,
    read_events,
    read_held,
)
from thrifty.db.tables import releases
from thrifty.errors import ControlError, SpecError
from thrifty.gateway.routing.registry import make_policy
from thrifty.gateway.state.deployment import Deployment, merge_deployment
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.openai.conversations import choose_version
from thrifty.release.manage import (
    abort_release,
    move_release,
    pause_release,
    promote_release,
    refresh_held,
    resume_release,
)
from thrifty.release.plan import load_plan, parse_plan
from thrifty.release.run import Releases

ANN = Actor("ann (test)")


def test_an_equal_version_is_promoted(world: World) -> None:
    world.prepare()
    world.start(margin=0.4)
    assert world.shares() == {"old": 1.0, "new": 0.0}
    assert world.turn().record.stage == 1
    assert world.shares() == {"old": 0.75, "new": 0.25}
    world.clock.pass_time(2)
    world.people(900, {"old": 0.8, "new": 0.8})
    world.clock.pass_time(60)  # all of them have settled, however long it took to write them
    row = world.turn_until(lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("promoted", "not worse")
    assert world.shares() == {"old": 0.0, "new": 1.0}
    events = read_events(world.database, row.id)
    assert [one.kind for one in events] == ["start", "next", "promote"]
    acceptance = events[-1].figures["metrics"]["acceptance"]
    assert acceptance["low"] > -0.4
    assert acceptance["candidate_count"] + acceptance["others_count"] == 900
    assert [one.kind for one in read_history(world.database, "m", 2)] == ["release", "release"]
    assert verify_audit(world.database).fault is None


@pytest.mark.parametrize(
    ("values", "metric"),
    [
        ({"likes": {"old": 0.9, "new": 0.3}}, "acceptance"),
        ({"likes": {}, "slower": {"new": 1.6}}, "ttft"),
        ({"likes": {}, "fails": {"new": 0.3}}, "errors"),
    ],
)
def test_a_worse_version_is_rolled_back(world: World, values: dict, metric: str) -> None:  # type: ignore[type-arg]
    world.prepare()
    world.start()
    world.turn()
    world.clock.pass_time(2)
    # Spread over time, because times are compared by blocks of it.
    for _ in range(25):
        world.people(36, **values)
        if not world.turn(20).is_active:
            break
    row = world.turn_until(lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("rolled_back", "worse")
    assert row.record.message.startswith(f"{metric} worse")
    assert world.shares() == {"old": 1.0, "new": 0.0}
    assert world.routes().choose(world.name()).label == "old"


def test_cold_caches_do_not_count_as_slow(world: World) -> None:
    """The old version answers half of its requests from what it remembers."""
    world.prepare()
    world.start()
    world.turn()
    world.clock.pass_time(2)
    routes = world.routes()
    for place in range(500):
        name = world.name()
        warm = routes.choose(name).label == "old" and place % 2 == 0
        values = {"ttft_ms": 5.0, "cached_tokens": 8} if warm else {"cached_tokens": 0}
        world.answer(name, **values)
    row = world.turn(5)
    assert row.state == "running"
    ttft = world.watch._evidence.metrics["ttft"]  # type: ignore[union-attr]
    assert ttft.others_count < 250
    assert ttft.difference is not None
    assert abs(ttft.difference) < 0.02


def test_what_is_no_users_conversation_of_this_step_is_left_out(world: World) -> None:
    world.prepare()
    old = world.name()
    world.answer(old)
    world.start()
    world.turn()
    world.clock.pass_time(2)
    names = {"new": "", "old": ""}
    while not all(names.values()):
        name = world.name()
        names[world.routes().choose(name).label] = name
    world.answer(old)  # it began before
    world.answer(names["new"], version="old", rerouted=True)
    world.answer(names["old"], version="new")  # pinned
    world.answer(origin="measurement")
    world.answer(version="new", origin="shadow", shadow_of=1)
    good = world.answer()[1]
    world.turn(5)
    found = world.watch._conversations  # type: ignore[union-attr]
    assert found is not None
    assert [one.treated for one in found.measured] == [good == "new"]
    assert sum(found.left_out.values()) == 2


def test_nobody_changes_versions_within_a_conversation_but_by_a_rollback(world: World) -> None:
    world.prepare()
    names = [world.name() for _ in range(60)]
    for name in names:
        world.answer(name)
    world.start(steps=[5, 50, 100])
    for stage in (1, 2, 3):
        move_release(world.database, world.release, stage, who="test", why="")
        assert {world.routes().choose(name).label for name in names} == {"old"}
    assert world.shares()["new"] == 1.0
    assert world.routes().choose(world.name()).label == "new"
    # Those who come back after an hour follow the weights.
    world.clock.pass_time(4000)
    world.answer(names[0], version="old")
    with world.database.begin() as connection:
        (held,) = read_held(connection)
    refresh_held(world.database, held, world.clock.wall())
    assert world.routes().choose(names[0]).label == "old"
    assert world.routes().choose(names[1]).label == "new"


async def test_conversations_under_way_at_a_step_stay_in_every_gateway(world: World) -> None:
    world.prepare()
    world.start(steps=[50, 100])
    names = [world.name() for _ in range(60)]
    tables = [RoutingTable(make_policy), RoutingTable(make_policy)]
    readers = [TableReader(world.database, table) for table in tables]

    async def wait_until(reached: Callable[[Deployment], bool]) -> None:
        async with asyncio.timeout(60):
            while not all(reached(table.deployments["m"]) for table in tables):
                await asyncio.sleep(0.02)

    def find_labels(there: Deployment, names: Sequence[str]) -> set[str]:
        return {there.choose(name).label for name in names}

    try:
        for reader in readers:
            await reader.start()
        for name in names:
            # The request goes on, so that the log does not have it.
            assert tables[0].deployments["m"].find_answering(name)[0].label == "old"
        others = [world.name() for _ in range(60)]
        for stage, labels in (1, {"old", "new"}), (2, {"new"}):
            move_release(world.database, world.release, stage, who="test", why="")
            await wait_until(lambda there, labels=labels: find_labels(there, others) == labels)  # type: ignore[misc]
            assert find_labels(tables[0].deployments["m"], names) == {"old"}
            await wait_until(lambda there: find_labels(there, names) == {"old"})
        with world.database.begin() as connection:
            drop_held(connection, "m")
            note_change(connection)
        await wait_until(lambda there: find_labels(there, names) == {"new"})
    finally:
        for reader in readers:
            reader.stop()


def test_what_is_held_by_a_rise_is_not_moved_by_a_fall_before_it_is_told(world: World) -> None:
    world.prepare()
    (row,) = read_fleet(world.database).deployments

    def step(before: Deployment | None, new: float, kept: str) -> Deployment:
        weights = {"old": 1 - new, "new": new}
        versions = [replace(one, weight=weights[one.label]) for one in row.versions]
        there = merge_deployment(before, replace(row, versions=tuple(versions)), make_policy)
        there.hold(HeldConversations("m", 0.0, 60.0, {kept: 1.0}, frozenset()), changed=True)
        return there

    first = step(None, 0.0, "old")
    names = [world.name() for _ in range(60)]
    for name in names:
        first.find_answering(name)
    second = step(first, 0.9, "old")
    assert {second.choose(name).label for name in names} == {"old"}
    assert second.unreported
    third = step(second, 0.1, "new")
    assert {
        third.choose(name).label
        for name in names
        if choose_version(name, [("old", 0.9), ("new", 0.1)])[0] == "old"
    } == {"old"}


def test_it_owns_the_weights_until_it_is_forced(world: World) -> None:
    world.prepare()
    row = world.start()
    world.turn()
    with pytest.raises(ControlError, match="release 1 of new owns the weights of 'm'"):
        set_traffic(world.database, "m", {"new": 5}, ANN)
    with pytest.raises(ControlError, match="thrifty release abort 1"):
        roll_back(world.database, "m", ANN)
    with pytest.raises(ControlError, match="there is one at a time"):
        world.start()
    for weights, fault in (
        ({"nwe": 1}, "has no version 'nwe'"),
        ({"old": 0, "new": 0}, "would be 0"),
    ):
        with pytest.raises(ControlError, match=fault):
            set_traffic(world.database, "m", weights, ANN, force=True)
    assert world.turn().state == "running"
    set_traffic(world.database, "m", {"old": 1, "new": 1}, ANN, force=True)
    assert world.release.state == "ended"
    assert read_traffic(world.database, "m")["weights"] == {"old": 1.0, "new": 1.0}
    assert read_events(world.database, row.id)[-1].who == ANN.who


def test_it_ends_where_what_it_rests_on_changes(world: World) -> None:
    world.prepare()
    world.start()
    world.turn()
    state = read_desired(world.database).deployments["m"]
    # Somebody writes weights past the commands.
    versions = tuple(replace(one, weight=3.0) for one in state.versions)
    want(world.database, replace(state, versions=versions))
    assert world.turn().state == "ended"
    assert world.shares() == {"old": 0.5, "new": 0.5}
    set_traffic(world.database, "m", {"old": 1, "new": 0}, ANN)
    world.start()
    world.turn()
    state = read_desired(world.database).deployments["m"]
    changed = replace(state, versions=(state.versions[0], echo("new", "new2", weight=1 / 3)))
    want(world.database, changed)
    row = world.turn()
    assert (row.state, row.record.message) == (
        "aborted", "the candidate was changed while it was released",
    )  # fmt: skip
    assert world.shares() == {"old": 1.0, "new": 0.0}


def test_a_candidate_that_crashes_is_aborted(world: World) -> None:
    world.prepare(ready=False)
    world.start()
    assert world.turn().record.stage == 0
    world.set_replica("new", "crash_loop", "Traceback\nno such file: model.xml")
    row = world.turn()
    assert (row.state, row.record.message) == (
        "aborted", "the candidate does not start: no such file: model.xml",
    )  # fmt: skip
    assert world.shares() == {"old": 1.0, "new": 0.0}


def test_an_operator_promotes_and_history_takes_it_back(world: World) -> None:
    world.prepare()
    row = world.start()
    world.turn()
    assert promote_release(world.database, row.id, who="ann").state == "promoted"
    assert world.shares() == {"old": 0.0, "new": 1.0}
    roll_back(world.database, "m", ANN)
    assert world.shares() == {"old": 0.75, "new": 0.25}


def test_it_pauses_goes_on_and_is_rolled_back_while_paused(world: World) -> None:
    world.prepare()
    row = world.start()
    world.turn()
    pause_release(world.database, row.id, who="ann", why="lunch")
    spent_s = world.turn(100).active_s
    assert world.release.record.message == "lunch"
    assert world.shares() == {"old": 0.75, "new": 0.25}
    with pytest.raises(ControlError, match="release 1 is paused; this needs one that is running"):
        pause_release(world.database, row.id, who="ann")
    resume_release(world.database, row.id, who="ann")
    assert world.turn(3).active_s <= spent_s + 60
    pause_release(world.database, row.id, who="ann")
    world.people(600, {"old": 0.9, "new": 0.2})
    assert world.turn_until(lambda row: not row.is_active).state == "rolled_back"
    with pytest.raises(ControlError, match="release 1 is rolled back"):
        abort_release(world.database, row.id, who="ann")


def test_a_budget_ends_it_and_the_plan_says_how(world: World) -> None:
    world.prepare()
    world.start(budget={"time": "10s"}, then={"inconclusive": "pause"})
    world.turn()
    row = world.turn(30)
    assert (row.state, row.record.verdict) == ("paused", "inconclusive")
    abort_release(world.database, row.id, who="ann")
    world.start(budget={"requests": 50})
    world.turn()
    world.clock.pass_time(2)
    world.people(60, {})
    row = world.turn_until(lambda row: not row.is_active)
    assert (row.state, row.record.verdict) == ("rolled_back", "inconclusive")


def test_shares_other_than_planned_pause_it(world: World) -> None:
    world.prepare()
    world.start(step={"conversations": 20, "time": "1h"})
    world.turn()
    world.clock.pass_time(2)
    routes = world.routes()
    for _ in range(250):
        name = world.name()
        # The candidate's requests are lost before they are logged.
        if routes.choose(name).label == "old":
            world.answer(name)
    row = world.turn_until(lambda row: row.state == "paused", most=10)
    assert "the comparison cannot be trusted" in row.record.message


def test_a_new_controller_comes_to_the_same(world: World) -> None:
    """Killed after each step, and while nobody looked."""
    world.prepare()
    world.start()
    world.restart()
    world.turn()
    world.clock.pass_time(2)
    world.people(450, {"old": 0.8, "new": 0.8})
    world.turn(5)
    first = world.watch._evidence.as_dict()  # type: ignore[union-attr]
    assert first["metrics"]["acceptance"]["candidate_count"] > 50
    world.restart()
    world.turn(0.1)
    assert world.watch._evidence.as_dict() == first  # type: ignore[union-attr]
    # What happened while there was no controller decides once there is one.
    world.people(600, {"old": 0.9, "new": 0.1})
    world.clock.ahead_s += 600
    world.restart()
    assert world.turn().state == "rolled_back"


def test_a_clock_that_is_set_begins_the_step_anew(world: World) -> None:
    world.prepare()
    world.start()
    world.turn()
    world.clock.pass_time(2)
    world.people(200, {"old": 0.9, "new": 0.2})
    world.clock.ahead_s -= 7200
    row = world.turn()
    assert read_events(world.database, row.id)[-1].kind == "clock"
    world.turn(10)
    assert world.release.state == "running"
    assert world.release.active_s < 60
    world.people(900, {"old": 0.9, "new": 0.2})
    assert world.turn_until(lambda row: not row.is_active).state == "rolled_back"


def test_a_clock_that_is_set_back_while_no_controller_runs_is_noticed(world: World) -> None:
    """What comes then has times before the step began, and would never count."""
    world.prepare()
    world.start()
    world.turn()
    world.clock.pass_time(2)
    world.people(200, {"old": 0.9, "new": 0.2})
    world.clock.ahead_s -= 7200
    world.restart()
    row = world.turn()
    assert read_events(world.database, row.id)[-1].kind == "clock"
    world.turn(10)
    world.people(900, {"old": 0.9, "new": 0.2})
    assert world.turn_until(lambda row: not row.is_active).state == "rolled_back"


def test_releases_that_cannot_be_read_hold_up_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.prepare()
    world.start()
    with world.database.begin() as connection:
        (known,) = connection.execute(select(releases)).mappings().all()
        plan = {**json.loads(known["record"]), "plan": {"steps": "none"}}
        for number, record in ((-1, "{}"), (0, json.dumps(plan))):
            other = {**known, "id": number, "active_on": f"other{number}", "record": record}
            connection.execute(insert(releases).values(other))
    running = Releases(lambda: world.database, lambda: None)
    for _ in range(3):
        asyncio.run(running._turn())
    assert world.release.record.stage == 1
    told = [one.message for one in caplog.records if one.levelname in ("ERROR", "WARNING")]
    assert len([one for one in told if one.startswith("release -1 cannot be read")]) == 1
    assert len([one for one in told if one.startswith("release 0: ")]) == 1
    for watch in running._watches.values():
        watch.close()


# Plans


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"steps": [5, 1, 100]}, "rise and end with 100"),
        ({"steps": [100]}, "cannot be measured in one step"),
        ({"steps": [100], "primary": "guards"}, "the guards see nothing in one step"),
        ({"primary": "judged"}, r"needs 'shadow\.judge'"),
        ({"shadow": {"judge": "nobody"}}, "neither 'module:function' nor 'deployment:NAME'"),
        ({"stepz": 1}, "stepz: is not a known key; did you mean 'step"),
        ({"guards": {"tttf": 1}}, r"guards\.tttf: is not a known key; did you mean 'ttft'"),
        ({"margin": "x", "alpha": 2}, r"(?s)margin: .*alpha: "),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: dict, fault: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ControlError, match=fault):
        parse_plan(plan)


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"steps": [10, 100], "settle": "5m", "guards": {"cost": None}}))
    plan = load_plan(path)
    assert (plan.settle, plan.share_of(1), "cost" in plan.metrics) == (300.0, 0.1, False)
    with pytest.raises(SpecError, match="the plan: cannot be read: No such file"):
        load_plan(tmp_path / "nothing.yaml")
    path.write_text("margin: 0.1\nsteps: [5, 1]\n")
    with pytest.raises(SpecError, match="the plan: 'steps' are percentages that rise"):
        load_plan(path)
    path.write_text("margin: 0.1\nstep: {times: 5}\n")
    with pytest.raises(
        SpecError, match=r"line 2, step\.times: is not a known key; did you mean 'time'"
    ):
        load_plan(path)
    path.write_text("steps: [1\n")
    with pytest.raises(SpecError, match="line 2, the plan: is not valid YAML"):
        load_plan(path)
    assert load_plan(None).stages == ["start", "1%", "5%", "25%", "100%"]


def test_the_plan_in_the_documentation_is_the_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "releases.md").read_text()
    block = page.split("```text\nprimary:")[1].split("```")[0]
    shown = yaml.safe_load(f"primary:{block}")
    shown["shadow"].pop("judge")
    shown["canary"].pop("judge")
    assert parse_plan(shown) == parse_plan({"primary": "acceptance"})


def test_a_candidate_begins_without_traffic(world: World) -> None:
    world.prepare()
    set_traffic(world.database, "m", {"new": 1}, ANN)
    with pytest.raises(ControlError, match="has a weight of 1 already"):
        world.start()
