"""Steps towards the desired state: on any way there, no version loses its last ready copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.control.reconcile import Room, Step, reconcile
from thrifty.db.desired_state import DesiredDeployment, DesiredReplicas, DesiredVersion
from thrifty.db.fleet import DeploymentRow, DeploymentSettings, ReplicaRow
from thrifty.fleet.base import ObservedReplica, SetKey
from thrifty.types import ReplicaState

GB = 1_000_000_000
ROOM = Room(cores=8, free_memory_bytes=1000 * GB)
READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING


def version(
    label: str = "a", revision: str = "r1", count: int = 1, **changes: Any
) -> DesiredVersion:
    values = {
        "model": "m@v1", "engine": "echo", "artifact": None, "options": {}, **changes,
        "replicas": DesiredReplicas(count, cpus=changes.pop("cpus", 1)),
    }  # fmt: skip
    values.pop("cpus", None)
    return DesiredVersion(label, revision=revision, **values)


def deployment(*versions: DesiredVersion, name: str = "m") -> DesiredDeployment:
    return DesiredDeployment(name, "decoder", DeploymentSettings(), versions)


@dataclass
class World:
    """Fleets that do what they are told, and gateways that read what is written."""

    copies: list[ObservedReplica]
    rows: Mapping[str, DeploymentRow]
    numbers: int = 0

    def step(self, desired: Sequence[DesiredDeployment], room: Room = ROOM) -> Step:
        """Decide, and do it."""
        step = reconcile({one.name: one for one in desired}, self.rows, self.copies, room)
        targets = {one.key: one.count for one in step.sets}
        assert len(targets) == len(step.sets)
        order = [READY, ReplicaState.UNHEALTHY, STARTING, ReplicaState.BACKOFF]
        for key in {copy.key for copy in self.copies} | set(targets):
            mine = [c for c in self.copies if c.key == key and not c.leaving]
            mine.sort(key=lambda c: order.index(c.state) if c.state in order else 9)
            for surplus in mine[targets.get(key, 0) :]:
                self.set_state(surplus, DRAINING)
            for _ in range(targets.get(key, 0) - len(mine)):
                self.numbers += 1
                row = ReplicaRow(
                    f"{key.deployment}-{self.numbers}", key.deployment, "echo", key.version,
                    key.revision, None, "http://x", STARTING.value,
                )  # fmt: skip
                self.copies.append(ObservedReplica(key, row))
        self.rows = step.rows
        return step

    def set_state(self, copy: ObservedReplica, state: ReplicaState) -> None:
        index = self.copies.index(copy)
        self.copies[index] = replace(copy, row=replace(copy.row, state=state.value))

    def advance(self, broken: Sequence[str] = (), memory_bytes: int = 0) -> None:
        """What starts becomes ready, what drains is gone."""
        self.copies = [copy for copy in self.copies if not copy.leaving]
        for copy in list(self.copies):
            if copy.state is STARTING and copy.key.revision not in broken:
                row = replace(copy.row, state="ready", memory_bytes=memory_bytes)
                self.copies[self.copies.index(copy)] = replace(copy, row=row)

    def answering(self, name: str) -> dict[str, int]:
        """How many ready copies answer for each version that gateways know."""
        if name not in self.rows:
            return {}
        return {
            row.label: sum(
                copy.state is READY
                and (copy.key.deployment, copy.key.version) == (name, row.label)
                and copy.key.revision == row.revision
                for copy in self.copies
            )
            for row in self.rows[name].versions
        }

    def settle(self, desired: Sequence[DesiredDeployment], room: Room = ROOM) -> None:
        for _ in range(40):
            self.step(desired, room)
            self.advance()

    def by_key(self) -> dict[SetKey, int]:
        return {k: sum(c.key == k for c in self.copies) for k in {c.key for c in self.copies}}


def settled(*versions: DesiredVersion) -> World:
    world = World([], {})
    world.settle([deployment(*versions)])
    return world


def test_a_first_state_starts_everything_at_once() -> None:
    world = World([], {})
    one = deployment(version("a", count=2), version("b", count=1, weight=3))
    step = world.step([one])
    assert {(s.key.version, s.count) for s in step.sets} == {("a", 2), ("b", 1)}
    assert step.rows == {"m": one.row}
    assert step.waiting == {}


def test_another_revision_starts_beside_the_old_one_and_then_takes_over_at_once() -> None:
    world = settled(version("a", "r1", 2))
    new = deployment(version("a", "r2", 2, weight=5))
    world.step([new])
    assert len(world.copies) == 4
    (row,) = world.rows["m"].versions
    assert (row.revision, row.weight) == ("r1", 5)
    first = next(copy for copy in world.copies if copy.key.revision == "r2")
    world.set_state(first, READY)
    world.step([new])
    assert world.rows["m"].versions[0].revision == "r1", "one copy cannot do the work of two"
    world.advance()
    world.step([new])
    assert world.rows["m"] == new.row
    assert {c.key.revision for c in world.copies if not c.leaving} == {"r2"}


def test_another_label_in_its_place_gets_traffic_once_it_is_ready() -> None:
    world = settled(version("a", "r1", 2))
    new = deployment(version("b", "r2", 2))
    world.step([new])
    assert [(v.label, v.weight) for v in world.rows["m"].versions] == [("b", 0), ("a", 1)]
    world.advance()
    world.step([new])
    assert world.rows["m"] == new.row
    world.settle([new])
    assert {c.key.version for c in world.copies} == {"b"}


def test_a_version_beside_others_is_known_at_once() -> None:
    world = settled(version("a", weight=90))
    new = deployment(version("a", weight=90), version("b", "r2", weight=10))
    world.step([new])
    assert world.rows["m"] == new.row
    assert world.answering("m") == {"a": 1, "b": 0}


def test_a_version_that_never_gets_ready_leaves_the_old_one_in_service() -> None:
    world = settled(version("a", "r1", 2))
    for new in (deployment(version("a", "r2", 2)), deployment(version("b", "r2", 2))):
        for _ in range(10):
            world.step([new])
            world.advance(broken=["r2"])
            assert world.answering("m")["a"] == 2
    # A third revision takes the place of the broken one; copies of that one go at once.
    newest = deployment(version("a", "r3", 2))
    step = world.step([newest])
    assert {s.key.revision for s in step.sets} == {"r1", "r3"}
    world.settle([newest])
    assert world.answering("m") == {"a": 2}
    assert {c.key.revision for c in world.copies} == {"r3"}


def test_a_removed_deployment_goes_whole_and_others_stay() -> None:
    world = World([], {})
    both = [deployment(version("a"), name="m"), deployment(version("a"), name="n")]
    world.settle(both)
    world.step(both[:1])
    assert set(world.rows) == {"m"}
    world.settle(both[:1])
    assert {copy.key.deployment for copy in world.copies} == {"m"}


def test_more_and_fewer_copies_keep_those_that_run() -> None:
    world = settled(version("a", count=2))
    before = {copy.row.id for copy in world.copies}
    world.settle([deployment(version("a", count=3))])
    assert before < {copy.row.id for copy in world.copies}
    world.settle([deployment(version("a", count=1))])
    assert world.answering("m") == {"a": 1}
    world.settle([deployment(version("a", count=0), version("b"))])
    assert world.answering("m") == {"a": 0, "b": 1}


def test_an_even_share_of_the_cores_changes_copy_by_copy() -> None:
    world = settled(version("a", cpus=None))
    assert next(iter(world.by_key())).cpus == 8
    new = deployment(version("a", count=2, cpus=None))
    step = world.step([new])
    assert {(s.key.cpus, s.count) for s in step.sets} == {(8, 1), (4, 2)}
    world.settle([new])
    assert world.by_key() == {SetKey("m", "a", "r1", 4): 2}


def test_where_memory_is_short_old_copies_make_room_one_by_one() -> None:
    size, capacity = 10 * GB, 35 * GB
    world = World([], {})
    room = Room(8, capacity, {"x": size})

    def left() -> Room:
        return replace(room, free_memory_bytes=capacity - size * len(world.copies))

    old, new = (deployment(version("a", r, 3, artifact="x")) for r in ("r1", "r2"))
    for _ in range(4):
        world.step([old], left())
        world.advance(memory_bytes=size)
    reasons = set()
    for _ in range(20):
        step = world.step([new], left())
        reasons |= set(step.waiting.values())
        assert size * len(world.copies) <= capacity
        assert world.answering("m")["a"] >= 1
        world.advance(memory_bytes=size)
    assert world.by_key() == {SetKey("m", "a", "r2", 1): 3}
    assert any("memory, and about" in reason for reason in reasons)


def test_the_last_copy_is_not_stopped_for_memory() -> None:
    size = 10 * GB
    world = World([], {})
    room = Room(8, 5 * GB, {"x": size, "y": size})
    for _ in range(3):
        world.step([deployment(version("a", artifact="x"))], room)
        world.advance(memory_bytes=size)
    for new in (version("a", "r2", artifact="y"), version("b", "r2", artifact="y")):
        for _ in range(5):
            step = world.step([deployment(new)], room)
            world.advance(memory_bytes=size)
            assert world.answering("m")["a"] == 1
        (reason,) = step.waiting.values()
        assert "1 more copy of about 10" in reason
        assert "the last copy that serves is not stopped for it" in reason


def test_memory_that_starting_copies_will_take_is_not_free() -> None:
    size = 10 * GB
    world = World([], {})
    one, two = version("a", "r1", 1, artifact="x"), version("a", "r2", 2, artifact="y")
    room = Room(8, 15 * GB, {"x": size, "y": size})
    world.step([deployment(one)], room)
    world.advance(memory_bytes=size)
    for _ in range(3):
        step = world.step([deployment(two)], room)
        assert {(s.key.revision, s.count) for s in step.sets} == {("r1", 1), ("r2", 1)}


def test_servers_of_others_are_as_many_as_their_urls() -> None:
    world = settled(version("a", urls=("http://1", "http://2")))
    ((key, count),) = world.by_key().items()
    assert (key.cpus, count) == (0, 2)


_versions = st.builds(
    version,
    st.just("a"),
    st.sampled_from(["r1", "r2", "r3"]),
    st.integers(0, 3),
    weight=st.sampled_from([0.0, 1.0, 9.0]),
    cpus=st.sampled_from([None, 1, 2]),
)


@st.composite
def states(draw: Any) -> list[DesiredDeployment]:
    """Any desired state of up to two deployments with up to three versions."""
    found = []
    for name in draw(st.sets(st.sampled_from(["m", "n"]))):
        labels = sorted(draw(st.sets(st.sampled_from("abc"), min_size=1)))
        versions = [replace(draw(_versions), label=label) for label in labels]
        if not any(v.weight > 0 for v in versions):
            versions[0] = replace(versions[0], weight=1.0)
        found.append(deployment(*versions, name=name))
    return sorted(found, key=lambda one: one.name)


_events = st.lists(
    st.tuples(
        st.sampled_from(["ready", "die", "start", "hang", "gone", "crash", "nothing"]),
        st.integers(0, 20),
    ),
    max_size=6,
)


def happen(world: World, event: str, index: int) -> None:
    """Something befalls a copy."""
    if not world.copies:
        return
    copy = world.copies[index % len(world.copies)]
    if event == "gone" or copy.leaving:
        world.copies.remove(copy)
    elif event == "ready":
        world.set_state(copy, READY)
    elif event == "die":
        world.copies[world.copies.index(copy)] = dying = replace(
            copy, row=replace(copy.row, restarts=copy.row.restarts + 1)
        )
        world.set_state(dying, ReplicaState.BACKOFF)
    elif event == "start" and copy.state is ReplicaState.BACKOFF:
        world.set_state(copy, STARTING)
    elif event == "hang" and copy.state is READY:
        world.set_state(copy, ReplicaState.UNHEALTHY)
    elif event == "crash":
        world.set_state(copy, ReplicaState.CRASH_LOOP)


def recover(world: World) -> None:
    for copy in list(world.copies):
        if not copy.leaving:
            world.set_state(copy, READY)


@settings(max_examples=150)
@given(st.lists(st.tuples(states(), _events), min_size=1, max_size=6))
def test_on_any_way_nobody_loses_the_last_copy_and_there_is_an_end(
    story: list[tuple[list[DesiredDeployment], list[tuple[str, int]]]],
) -> None:
    world = World([], {})
    for desired, events in story:
        names = {one.name: one for one in desired}
        for event, index in [("nothing", 0), *events]:
            happen(world, event, index)
            before = {name: world.answering(name) for name in world.rows}
            step = world.step(desired)
            for target in step.sets:
                one = names[target.key.deployment]
                wanted = one.find_version(target.key.version)
                if wanted is not None and wanted.revision == target.key.revision:
                    assert target.count <= max(wanted.copies, 3)
            for name, one in names.items():
                was, now = before.get(name, {}), world.answering(name)
                for wanted in one.versions:
                    # A version that stays goes on answering.
                    if was.get(wanted.label) and wanted.copies:
                        assert now[wanted.label], (name, wanted.label)
                weights = {v.label: v.weight for v in world.rows[name].versions}
                assert any(weights.values())
                if any(was.values()) and all(v.copies for v in one.versions):
                    was_weighted = any(was[label] for label in was)
                    assert not was_weighted or any(now.values()), (was, now)
            again = reconcile(names, world.rows, world.copies, ROOM)
            assert again == step
    desired = story[-1][0]
    for _ in range(30):
        world.step(desired)
        recover(world)
        world.advance()
    assert world.rows == {one.name: one.row for one in desired}
    copies = {
        (one.name, v.label, v.revision): v.copies
        for one in desired
        for v in one.versions
        if v.copies
    }
    found: dict[tuple[str, str, str], int] = {}
    for key, count in world.by_key().items():
        place = (key.deployment, key.version, key.revision)
        assert place not in found, "one size of copy"
        found[place] = count
    assert found == copies


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
def test_every_copy_gets_a_core(cores: int) -> None:
    desired = deployment(version("a", count=5, cpus=None), version("b", cpus=99))
    step = reconcile({"m": desired}, {}, [], Room(cores, GB))
    by_label = {target.key.version: target.key.cpus for target in step.sets}
    assert by_label == {"a": max(1, cores // 6), "b": cores}


# Bounds


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.data())
def test_an_update_never_runs_more_than_the_most(most: int, have: int, data: Any) -> None:
    """Starting copies counted, at every step, and something answers all the time. With at most one
    copy, the new one starts beside it.
    """
    count = max(1, min(most, have))
    replicas = DesiredReplicas(count, 1, most, cpus=1)
    old = replace(version("a", "r1"), replicas=replicas)
    world = settled(old)
    new = replace(old, revision="r2")
    for _ in range(80):
        if data.draw(st.integers(0, 4)) == 0:
            moved = data.draw(st.integers(1, most))
            new = replace(new, replicas=replace(replicas, count=moved))
        world.step([deployment(new)])
        running = [copy for copy in world.copies if not copy.leaving]
        assert len(running) <= max(2, most)
        assert world.answering("m")["a"] >= 1
        if data.draw(st.booleans()):
            world.advance()
    world.settle([deployment(new)])
    assert world.by_key() == {SetKey("m", "a", "r2", 1): new.replicas.count}


def test_the_share_of_cores_does_not_change_with_an_autoscaled_count() -> None:
    scaled = replace(version(), replicas=DesiredReplicas(1, 0, 4))
    world = settled(scaled)
    assert [copy.key.cpus for copy in world.copies] == [2]
    more = replace(scaled, replicas=DesiredReplicas(3, 0, 4))
    world.settle([deployment(more)])
    assert world.by_key() == {SetKey("m", "a", "r1", 2): 3}


def test_at_zero_by_intent_nothing_runs_and_the_row_stays() -> None:
    scaled = replace(version(), replicas=DesiredReplicas(1, 0, 4))
    world = settled(scaled)
    none = deployment(replace(scaled, replicas=DesiredReplicas(0, 0, 4)))
    world.settle([none])
    assert world.copies == []
    assert world.rows == {"m": none.row}
