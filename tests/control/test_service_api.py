"""Traffic, apply, rollback, history and status, on a real database and without a running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.control.test_plan import TWO, load, make, snapshot, whats
from thrifty.artifacts import Store
from thrifty.control.service_api import (
    Actor,
    Applied,
    apply_prepared,
    describe_history,
    look_at_rollback,
    plan_spec,
    read_traffic,
    roll_back,
    set_traffic,
)
from thrifty.control.service_status import read_progress, read_status, wait_until_settled
from thrifty.db import Database, open_database
from thrifty.db.desired import read_desired, read_history
from thrifty.db.fleet import ReplicaRow, read_fleet, save_deployment, save_replicas
from thrifty.errors import ControlError, FleetError, SpecError
from thrifty.fleet.controller_note import open_home
from thrifty.home import Home

ANN, BOB = Actor("ann (test)", "because"), Actor("bob (test)")


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    opened = open_database(home.database_url, migrate=True)
    yield opened
    opened.close()


def apply(
    home: Home, database: Database, folder: Path, *, reset: bool = False, running: bool = True,
    **keys: Any,
) -> Applied:  # fmt: skip
    prepared = make(home, load(folder, **keys))
    return apply_prepared(database, prepared, ANN, reset=reset, running=running)


def weights(database: Database, name: str = "chat") -> dict[str, float]:
    return {v["label"]: v["weight"] for v in read_traffic(database, name)["versions"]}


def test_traffic_sets_what_is_named_and_leaves_the_rest(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    assert read_traffic(database, "chat") == {
        "deployment": "chat",
        "versions": [
            {"label": "a", "weight": 90.0, "share": 0.9, "shadow": 0.0},
            {"label": "b", "weight": 10.0, "share": 0.1, "shadow": 0.0},
        ],
        "weights": {"a": 90.0, "b": 10.0},
        "owner": "spec",
    }
    set_traffic(database, "chat", {"b": 30}, ANN)
    assert weights(database) == {"a": 90.0, "b": 30.0}
    assert read_traffic(database, "chat")["owner"] == "traffic"
    set_traffic(database, "chat", {"a": 0, "b": 0.5}, BOB)
    assert weights(database) == {"a": 0.0, "b": 0.5}
    history = describe_history(database, "chat")
    assert [(row["kind"], row["who"], row["why"]) for row in history] == [
        ("traffic", "bob (test)", ""), ("traffic", "ann (test)", "because"),
        ("apply", "ann (test)", "because"),
    ]  # fmt: skip
    assert history[0]["versions"][1] == {
        "label": "b", "weight": 0.5, "replicas": 1, "model": "echo@v1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted", "fault"),
    [
        ("chat", {"c": 1.0}, "'chat' has no version 'c'; known here: a, b"),
        (
            "chat",
            {"a": 0.0, "b": 0.0},
            r"all weights of 'chat' would be 0.*thrifty traffic chat a=1",
        ),
        ("chat", {"a": -1.0}, "the weight of 'a' is -1; weights are numbers of at least 0"),
        ("chat", {"a": float("nan")}, "the weight of 'a' is nan"),
        ("chat", {"a": float("inf")}, "the weight of 'a' is inf"),
        ("chatt", {"a": 1.0}, "there is no deployment 'chatt'; did you mean 'chat'?"),
        ("gpt", {"a": 1.0}, "'gpt' is an alias of 'chat'; write that name"),
    ],
)
def test_traffic_that_cannot_be_is_refused_and_changes_nothing(
    home: Home, database: Database, tmp_path: Path, name: str, wanted: dict[str, float], fault: str
) -> None:
    apply(home, database, tmp_path, name="chat", aliases=["gpt"], versions=TWO)
    before = read_desired(database)
    with pytest.raises(ControlError, match=fault):
        set_traffic(database, name, wanted, ANN)
    assert read_desired(database) == before


def test_where_nothing_is_deployed_that_is_said(home: Home, database: Database) -> None:
    with pytest.raises(ControlError, match="nothing is deployed here"):
        read_traffic(database, "chat")
    with pytest.raises(ControlError, match="nothing is deployed here"):
        roll_back(database, "chat", ANN)
    with pytest.raises(ControlError, match="nothing is deployed here"):
        describe_history(database)


def test_a_home_without_a_service_is_said(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no service was started in"), open_home(Home(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_apply_says_who_holds_what_and_takes_it_back_on_demand(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    set_traffic(database, "chat", {"a": 50, "b": 50}, Actor("ann (test)", "a trial"))
    set_traffic(database, "chat", {"a": 40}, BOB)
    more = [{**TWO[0], "replicas": 3}, TWO[1]]
    applied = apply(home, database, tmp_path, name="chat", versions=more)
    assert applied.changed == ("chat",)
    assert weights(database) == {"a": 40.0, "b": 50.0}
    assert read_desired(database).deployments["chat"].versions[0].replicas.count == 3
    held = applied.to_builtins()["held"]
    assert [(one["version"], one["field"], one["current"], one["spec"]) for one in held] == [
        ("a", "weight", 40.0, 90.0), ("b", "weight", 50.0, 10.0),
    ]  # fmt: skip
    assert held[0]["by"].startswith("bob (test), 20")
    assert held[1]["by"].startswith("ann (test), 20")
    assert held[1]["by"].endswith(": a trial")
    same = apply(home, database, tmp_path, name="chat", versions=more)
    assert same.changed == ()
    back = apply(home, database, tmp_path, reset=True, name="chat", versions=more)
    assert weights(database) == {"a": 90.0, "b": 10.0}
    assert [one.field for one in back.held] == ["weight", "weight"], "what it took back"
    assert back.holders[0].startswith("bob (test), 20")
    assert back.holders[1].startswith("ann (test), 20")
    assert back.holders[1].endswith(": a trial")
    assert apply(home, database, tmp_path, name="chat", versions=more).held == ()


def test_deployments_come_and_go(home: Home, database: Database, tmp_path: Path) -> None:
    apply(home, database, tmp_path, name="one")
    applied = apply(
        home, database, tmp_path, deployments=[{"name": "one"}, {"name": "two", "replicas": 2}]
    )
    assert applied.changed == ("two",)
    assert list(read_desired(database).deployments) == ["one", "two"]
    applied = apply(home, database, tmp_path, name="two", replicas=2)
    assert applied.changed == ("one",)
    assert list(read_desired(database).deployments) == ["two"]
    assert [row.kind for row in read_history(database, "one")] == ["apply", "apply"]
    roll_back(database, "one", ANN)
    assert list(read_desired(database).deployments) == ["one", "two"]
    again = apply(home, database, tmp_path, name="two", replicas=2)
    assert [one.what for one in again.held] == ["one: deployment"]


def test_a_rollback_goes_back_and_forth(home: Home, database: Database, tmp_path: Path) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    with pytest.raises(ControlError, match="it was changed once only"):
        roll_back(database, "chat", ANN)
    first = read_desired(database).deployments["chat"]
    apply(home, database, tmp_path, name="chat", versions=TWO[:1])
    second = read_desired(database).deployments["chat"]
    said = roll_back(database, "chat", BOB)
    assert (said["kind"], said["who"]) == ("rollback", "bob (test)")
    assert read_desired(database).deployments["chat"] == first
    roll_back(database, "chat", BOB)
    assert read_desired(database).deployments["chat"] == second
    roll_back(database, "chat", BOB)
    held = apply(home, database, tmp_path, name="chat", versions=TWO[:1])
    assert [one.what for one in held.held] == ["chat: version b"]
    assert read_desired(database).deployments["chat"] == first, "the operator's word holds"
    with pytest.raises(ControlError, match="there is no deployment 'chad'"):
        roll_back(database, "chad", ANN)


def test_weights_that_are_so_already_are_no_change(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO[:1])
    apply(home, database, tmp_path, name="chat", versions=TWO)
    set_traffic(database, "chat", {"a": 90, "b": 10}, ANN)
    set_traffic(database, "chat", {"a": 80}, BOB)
    set_traffic(database, "chat", {"a": 80}, ANN)
    assert [row["kind"] for row in describe_history(database, "chat")] == [
        "traffic", "apply", "apply",
    ]  # fmt: skip
    seen = look_at_rollback(database, "chat")
    assert "(traffic, bob (test), 20" in seen.takes_back
    roll_back(database, "chat", ANN)
    assert weights(database) == {"a": 90.0, "b": 10.0}


def test_a_rollback_removes_a_deployment_on_demand_only(
    home: Home, database: Database, tmp_path: Path
) -> None:
    both = {"deployments": [{"name": "one"}, {"name": "two"}]}
    apply(home, database, tmp_path, **both)
    apply(home, database, tmp_path, name="two")
    apply(home, database, tmp_path, **both)
    assert look_at_rollback(database, "one").after == ()
    before = read_desired(database)
    with pytest.raises(ControlError, match=r"would remove it; confirm that with --remove"):
        roll_back(database, "one", ANN)
    assert read_desired(database) == before
    assert roll_back(database, "one", BOB, remove=True)["versions"] is None
    applied = apply(home, database, tmp_path, **both)
    assert [(one.deployment, one.is_left_out) for one in applied.held] == [("one", True)]
    assert applied.holders[0].startswith("bob (test), 20")
    roll_back(database, "one", ANN)
    assert list(read_desired(database).deployments) == ["one", "two"]


@pytest.mark.engine
def test_a_rollback_to_a_model_that_is_gone_is_refused(
    home: Home, database: Database, tmp_path: Path
) -> None:
    from tests.control.test_plan import write_model

    folder = write_model(tmp_path / "tiny")
    model = {"name": "chat", "engine": "openvino", "model": str(folder)}
    apply(home, database, tmp_path / "x", **model)
    gone = read_desired(database).deployments["chat"].versions[0].model
    apply(home, database, tmp_path / "x", **model, compress="int4")
    store = Store(home.models)
    store.remove(gone)
    store.collect_garbage()
    with pytest.raises(ControlError, match="is not in the store any more; apply a spec"):
        roll_back(database, "chat", ANN, store=store)


def test_what_cannot_change_while_it_runs_changes_nothing(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", gateway={"port": 8080})
    before = read_desired(database)
    with pytest.raises(SpecError, match=r"line 5, gateway\.port: cannot change.*thrifty down"):
        apply(home, database, tmp_path, name="chat", gateway={"port": 9090})
    assert read_desired(database) == before
    apply(home, database, tmp_path, running=False, name="chat", gateway={"port": 9090})
    service = read_desired(database).service
    assert service is not None
    assert service.gateway["port"] == 9090


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["t", "u", "r"]), st.integers(0, 3)), max_size=8))
def test_applying_the_same_spec_never_changes_what_operators_did(
    home: Home, database: Database, tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    apply(home, database, tmp_path, reset=True, name="chat", versions=TWO)
    for step, value in steps:
        if step == "t":
            set_traffic(database, "chat", {"a": value, "b": 1}, ANN)
        elif step == "u" and (value or weights(database)["a"]):
            set_traffic(database, "chat", {"b": value}, ANN)
        elif step == "r" and len(read_history(database, "chat", 2)) == 2:
            roll_back(database, "chat", ANN)
        before = read_desired(database).deployments
        apply(home, database, tmp_path, name="chat", versions=TWO)
        assert read_desired(database).deployments == before


# Plans beside a database


def test_a_plan_beside_a_database_changes_no_byte(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path / "x", name="chat", versions=TWO)
    # A connection that was not closed leaves its log behind, as a killed process does.
    wal = home.database.with_name("thrifty.db-wal")
    log = wal.read_bytes()
    database.close()
    if not wal.exists():
        wal.write_bytes(log)
    before = snapshot(home.root)
    made = plan_spec(load(tmp_path / "x", name="chat", versions=TWO[:1]), home)
    assert snapshot(home.root) == before
    assert whats(made.start)[0] == "chat/a: 1 replica of echo@v1 (echo)"
    assert made.fixed == ()


def test_a_plan_beside_an_old_database_takes_it_for_empty(home: Home, tmp_path: Path) -> None:
    import sqlite3

    home.root.mkdir()
    with sqlite3.connect(home.database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0004')")
    connection.close()
    before = snapshot(home.root)
    made = plan_spec(load(tmp_path / "x", name="chat"), home)
    assert len(made.start) == 2
    assert snapshot(home.root) == before


# Status


def replicas(database: Database, name: str, *states: str) -> None:
    """Rows of the first replicas of a deployment, one label after the other."""
    row = read_desired(database).deployments[name]
    rows = [
        ReplicaRow(
            f"{name}-{v.label}-{n}", name, v.engine, v.label, v.revision, None, "http://x", state,
            message="it broke" if state == "crash_loop" else None,
        )
        for v in row.versions
        for n, state in enumerate(states)
    ]  # fmt: skip
    save_deployment(database, row.row)
    save_replicas(database, rows, routing_changed=True)


def test_status_shows_versions_and_one_flat_list_of_replicas(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    replicas(database, "chat", "ready")
    (shown,) = read_status(database)
    assert (shown["name"], shown["version"], shown["engine"]) == ("chat", "a", "echo")
    a, b = shown["versions"]
    assert set(a) >= {"label", "weight", "shadow", "engine", "model", "revision", "state"}
    assert (a["label"], a["weight"], a["share"], a["state"]) == ("a", 90.0, 0.9, "ready")
    assert (b["label"], b["shadow"], b["ready"], b["wanted"]) == ("b", 0.0, 1, 1)
    assert [(r["id"], r["version"], r["state"]) for r in shown["replicas"]] == [
        ("chat-a-0", "a", "ready"), ("chat-b-0", "b", "ready"),
    ]  # fmt: skip


def test_waiting_ends_when_all_is_as_wanted_or_cannot_get_there(
    home: Home, database: Database, tmp_path: Path
) -> None:
    from thrifty.db.fleet import GatewayRow, save_gateway

    apply(home, database, tmp_path, name="chat")
    assert read_progress(database).wanted == 1
    with pytest.raises(FleetError, match="the controller does not run"):
        wait_until_settled(database, lambda: False)
    replicas(database, "chat", "starting")
    with pytest.raises(FleetError, match="not everything is ready after 0 s: chat/echo@v1 is"):
        wait_until_settled(database, lambda: True, timeout_s=0)
    replicas(database, "chat", "crash_loop")
    with pytest.raises(FleetError, match=r"does not start: it broke\nTo take .* thrifty rollback"):
        wait_until_settled(database, lambda: True)
    replicas(database, "chat", "ready")
    assert "0 of 1 gateway workers" in read_progress(database).left
    save_gateway(database, GatewayRow("gateway-0", "http://x", 1, 1.0, "ready"))
    wait_until_settled(database, lambda: True)
    assert read_fleet(database).gateways
