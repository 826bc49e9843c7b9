"""The desired state: written by several, each on what it has read; with a history to go back in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from tests.db.databases import KINDS, open_kind
from thrifty.db import Database
from thrifty.db.desired import (
    AUTOSCALE_KEEP,
    SERVICE,
    Desired,
    DesiredChange,
    change_desired,
    previous_state,
    read_desired,
    read_desired_change,
    read_history,
    write_desired,
)
from thrifty.db.desired_state import (
    DesiredDeployment,
    DesiredReplicas,
    DesiredService,
    DesiredVersion,
    decode_deployment,
    encode_desired,
)
from thrifty.db.fleet import DeploymentSettings, VersionSettings, read_fleet, save_deployment
from thrifty.db.tables import desired
from thrifty.errors import ControlError, DatabaseError, StaleStateError

BY: dict[str, Any] = {"kind": "apply", "who": "ann", "why": "test"}


@pytest.fixture(params=KINDS)
def database(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


def version(label: str = "a", weight: float = 1.0, **changes: Any) -> DesiredVersion:
    values = {
        "model": "smol@v1", "engine": "echo", "revision": "r1", "artifact": None, "options": {},
        "settings": VersionSettings(honours=("stop",)), **changes,
    }  # fmt: skip
    return DesiredVersion(label, weight=weight, **values)


def deployment(name: str = "m", *versions: DesiredVersion) -> DesiredDeployment:
    return DesiredDeployment(name, "decoder", DeploymentSettings(), versions or (version(),))


def write(database: Database, *states: DesiredDeployment, **changes: Any) -> int:
    found = [DesiredChange(state.name, state) for state in states]
    by = {**BY, "read_change_id": read_desired_change(database), **changes}
    return write_desired(database, found, **by)


def test_what_is_written_comes_back_whole(database: Database) -> None:
    assert read_desired(database) == Desired(None, {}, 0)
    one = deployment("m", version("a", 90, options={"ttft": 0.5, "urls": ["x"]}), version("b", 10))
    service = DesiredService({"workers": 2}, {"engine": "echo"})
    changes = [DesiredChange("m", one), DesiredChange(SERVICE, service)]
    newest = write_desired(database, changes, read_change_id=0, **BY)
    assert read_desired(database) == Desired(service, {"m": one}, newest)
    assert read_desired_change(database) == newest
    assert [(p.kind, p.who, p.why, p.state) for p in read_history(database, "m")] == [
        ("apply", "ann", "test", one)
    ]


def test_any_reason_can_be_written(database: Database) -> None:
    write(database, deployment(), who="a\0" * 100, why="\udcff\0")
    [past] = read_history(database, "m")
    assert (past.who, past.why) == ("a\ufffd" * 64, "\ufffd\ufffd")


def test_what_does_not_differ_is_not_written(database: Database) -> None:
    newest = write(database, deployment())
    assert write(database, deployment()) == newest
    assert len(read_history(database, "m")) == 1


def test_a_removed_deployment_is_gone_and_stays_in_the_history(database: Database) -> None:
    write(database, deployment())
    read = read_desired_change(database)
    write_desired(database, [DesiredChange("m", None)], read_change_id=read, **BY)
    assert read_desired(database).deployments == {}
    assert [past.state for past in read_history(database, "m")] == [None, deployment()]
    with pytest.raises(ControlError, match="cannot be removed"):
        write_desired(database, [DesiredChange(SERVICE, None)], read_change_id=0, **BY)


def test_who_decided_on_an_older_state_is_refused(database: Database) -> None:
    first = write(database, deployment())
    write(database, deployment("m", version("b")))
    routing = read_fleet(database).change
    with pytest.raises(StaleStateError, match="read it again"):
        write(database, deployment("m", version("c")), read_change_id=first)
    assert read_desired(database).deployments["m"].versions[0].label == "b"
    assert read_fleet(database).change == routing


def test_two_writers_at_once_lose_nothing(database: Database) -> None:
    write(database, deployment("m", version("a", 0), version("b", 1)))
    times, writers = 8, 3

    def count_up(state: Desired) -> list[DesiredChange]:
        one = state.deployments["m"]
        first = replace(one.versions[0], weight=one.versions[0].weight + 1)
        return [DesiredChange("m", replace(one, versions=(first, *one.versions[1:])))]

    def run() -> None:
        for _ in range(times):
            change_desired(database, count_up, kind="traffic", who="x", why="")

    threads = [threading.Thread(target=run) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_desired(database).deployments["m"].versions[0].weight == times * writers
    assert len(read_history(database, "m", 1000)) == times * writers + 1


def test_weights_reach_gateways_in_the_same_transaction(database: Database) -> None:
    one = deployment("m", version("a", 90), version("b", 10))
    write(database, one)
    save_deployment(database, one.row)  # as the controller does
    before = read_fleet(database).change
    two = deployment("m", version("a", 1, shadow=0.25), version("b", 3))
    write(database, two, kind="traffic")
    state = read_fleet(database)
    assert state.change > before
    (row,) = state.deployments
    assert row == two.row
    assert [(v.label, v.weight, v.shadow) for v in row.versions] == [("a", 1, 0.25), ("b", 3, 0)]


def test_anything_else_is_left_to_the_controller(database: Database) -> None:
    one = deployment("m", version("a", 90))
    write(database, one)
    save_deployment(database, one.row)
    write(database, deployment("m", version("a", 50), version("b", 50)))
    assert read_fleet(database).deployments == [one.row]
    # A weight of a version that no controller has written yet changes what is written of the others.
    write(database, deployment("m", version("a", 20), version("b", 80)))
    (row,) = read_fleet(database).deployments
    assert [(v.label, v.weight) for v in row.versions] == [("a", 20)]


def test_rollback_goes_back_and_again_forth(database: Database) -> None:
    one, two = deployment("m", version("a")), deployment("m", version("b"))
    with pytest.raises(ControlError, match=r"'m' has no earlier state .*: it is not known"):
        previous_state(database, "m")
    write(database, one)
    with pytest.raises(ControlError, match="changed once only"):
        previous_state(database, "m")
    write(database, two)
    for expected in (one, two, one):
        state = previous_state(database, "m")
        assert state == expected
        assert isinstance(state, DesiredDeployment)
        write(database, state, kind="rollback")
    assert [past.kind for past in read_history(database, "m")] == ["rollback"] * 3 + ["apply"] * 2


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        (deployment("m", version("a"), version("a")), "two versions have the label 'a'"),
        (deployment("m", version("-a")), "does not match"),
        (deployment("m", version("a" * 64)), "does not match"),
        (deployment("m", version("a", 0)), "all weights are 0"),
        (deployment("m", version("a", -1), version("b")), "weight of 'a' is -1; it must be at"),
        (deployment("m", version("a", float("nan"))), "weight of 'a' is nan"),
        (deployment("m", version("a", shadow=1.5)), "shadow of 'a' is 1.5"),
        (deployment("m", version("a", replicas=DesiredReplicas(-1))), "'a' has -1 replicas"),
        (replace(deployment(), versions=()), "no version"),
        (deployment(""), "empty name"),
    ],
)
def test_what_makes_no_sense_is_refused(
    database: Database, state: DesiredDeployment, fault: str
) -> None:
    with pytest.raises(ControlError, match=fault):
        write(database, state)
    assert read_desired_change(database) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"name": "m"}', "nonsense"])
def test_a_row_that_cannot_be_understood_is_named(database: Database, text: str) -> None:
    write(database, deployment())
    with database.begin() as connection:
        connection.execute(update(desired).values(state=text))
    with pytest.raises(DatabaseError, match=r"state of the deployment 'm' cannot be understood"):
        read_desired(database)


def test_fields_of_a_newer_thrifty_are_passed_over() -> None:
    text = encode_desired(deployment()).replace('"name":"m"', '"name":"m","colour":"red"')
    assert decode_deployment(text) == deployment()


_numbers = st.floats(0, 1e6, allow_nan=False)
_options = st.dictionaries(
    st.text(max_size=8),
    st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), _numbers, st.text(max_size=8)),
    max_size=4,
)
_versions = st.builds(
    DesiredVersion, st.text(max_size=8), st.text(max_size=8), st.text(max_size=8),
    st.text(max_size=8), st.none() | st.text(max_size=8), _options, st.tuples(st.text(max_size=8)), _numbers,
    st.floats(0, 1),
    st.just(VersionSettings(honours=("a",), slots=3)),
    st.builds(DesiredReplicas, st.integers(0, 9), st.none() | st.integers(1, 8)),
)  # fmt: skip


@given(st.lists(_versions, max_size=3), st.text(max_size=8))
def test_any_state_survives_its_encoding(versions: list[DesiredVersion], name: str) -> None:
    state = replace(deployment(name), versions=tuple(versions))
    assert decode_deployment(encode_desired(state)) == state


def scale(database: Database, count: int) -> None:
    replicas = DesiredReplicas(count, 0, 100)

    def decide(state: Desired) -> list[DesiredChange]:
        there = state.deployments["m"]
        return [DesiredChange("m", replace(there, versions=(version(replicas=replicas),)))]

    change_desired(database, decide, kind="autoscale", who="autoscaler", why=f"to {count}")


def test_changes_by_the_autoscaler_are_few_and_not_gone_back_to(database: Database) -> None:
    first = deployment("m", version(replicas=DesiredReplicas(1, 0, 100)))
    write(database, first)
    second = deployment("m", version(replicas=DesiredReplicas(1, 0, 100), revision="r2"))
    write(database, second)
    for count in range(2, AUTOSCALE_KEEP + 10):
        scale(database, count)
    history = read_history(database, "m", 1000)
    assert [change.kind for change in history].count("autoscale") == AUTOSCALE_KEEP
    assert [change.kind for change in history].count("apply") == 2
    assert history[0].why == f"to {AUTOSCALE_KEEP + 9}"
    assert previous_state(database, "m") == first


@pytest.mark.parametrize(
    "replicas",
    [
        DesiredReplicas(5, 1, 4),
        DesiredReplicas(0, 1, 4),
        DesiredReplicas(1, 3, 2),
        DesiredReplicas(1, None, 2),
        DesiredReplicas(0, 0, 2, idle_after_s=0.0),
    ],
)
def test_counts_beyond_their_bounds_are_refused(
    database: Database, replicas: DesiredReplicas
) -> None:
    with pytest.raises(ControlError, match="cannot be so"):
        write(database, deployment("refused", version(replicas=replicas)))
