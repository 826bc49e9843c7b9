"""Restarting versions and draining replicas: what is desired, what `apply` and `rollback` make of it,
and the real thing under load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.running import (
    asking,
    by_id,
    deployment,
    echo,
    prepare,
    running_controller,
    settled,
    until_state,
    want,
)
from tests.control.test_merge import state
from tests.control.test_merge import version as spec_version
from tests.control.test_plan import TWO
from tests.control.test_service_api import apply, database, weights
from thrifty.control.merge import merge
from thrifty.control.restart import drain_replica, restart_version
from thrifty.control.service_api import Actor, roll_back, set_traffic
from thrifty.db import Database
from thrifty.db.desired import read_desired, read_history
from thrifty.db.desired_state import DesiredDeployment, find_build, next_revision
from thrifty.db.fleet import DeploymentSettings, ReplicaRow, read_fleet, save_replicas
from thrifty.errors import ControlError
from thrifty.home import Home

__all__ = ["database"]

ANN = Actor("ann (test)", "it leaks")


def revisions(database: Database, name: str = "chat") -> dict[str, str]:
    found = read_desired(database).deployments[name]
    return {version.label: version.revision for version in found.versions}


def test_revisions_name_their_build_however_often_it_was_restarted() -> None:
    assert next_revision("r-12") == "r-12+1"
    assert next_revision(next_revision("r-12")) == "r-12+2"
    assert [find_build(one) for one in ("r-12", "r-12+1", "r-12+21")] == ["r-12"] * 3


def test_a_restart_is_a_change_of_one_version_that_apply_keeps(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    before = revisions(database)
    assert restart_version(database, "chat", "a", ANN) == f"{before['a']}+1"
    assert revisions(database) == before | {"a": f"{before['a']}+1"}
    newest = read_history(database, "chat")[0]
    assert (newest.kind, newest.who, newest.why) == ("restart", "ann (test)", "it leaks")
    for reset in (False, True):
        applied = apply(home, database, tmp_path, name="chat", versions=TWO, reset=reset)
        assert revisions(database)["a"] == f"{before['a']}+1"
        assert applied.held == ()
    with pytest.raises(ControlError, match="no version"):
        restart_version(database, "chat", "z", ANN)


def test_another_build_ends_what_a_restart_has_added() -> None:
    def served(build: int, revision: str = "") -> DesiredDeployment:
        version = spec_version("a", build)
        version = replace(version, revision=revision or version.revision)
        return DesiredDeployment("chat", "decoder", DeploymentSettings(), (version,), drains=DRAINS)

    there = served(1, "r1+3")
    for reset in (False, True):
        kept = merge(state(served(1)), state(served(1)), state(there), reset=reset)
        assert kept.deployments["chat"].versions[0].revision == "r1+3"
        assert kept.held == ()
        new = merge(state(served(1)), state(served(2)), state(there), reset=reset)
        assert new.deployments["chat"].versions[0].revision == "r2"
    assert kept.deployments["chat"].drains == DRAINS


DRAINS = (("chat-0", 5.0),)


def test_a_rollback_passes_over_restarts_and_drains(
    home: Home, database: Database, tmp_path: Path
) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)
    set_traffic(database, "chat", {"b": 90}, ANN)
    restart_version(database, "chat", "a", ANN)
    roll_back(database, "chat", ANN)
    assert weights(database) == {"a": 90.0, "b": 10.0}


def test_what_cannot_be_drained_is_said(home: Home, database: Database, tmp_path: Path) -> None:
    apply(home, database, tmp_path, name="chat", versions=TWO)

    def row(number: int, **fields: object) -> ReplicaRow:
        values = {"version": "a", "state": "ready", "pid": 7, **fields}
        return ReplicaRow(
            id=f"chat-{number}", deployment="chat", engine="echo", revision="r", artifact=None,
            url=f"http://127.0.0.1:{number + 1}", **values,
        )  # type: ignore[arg-type]  # fmt: skip

    rows = [
        row(0),
        row(1, state="starting"),
        row(2, state="draining"),
        row(3, version="b", pid=None),
    ]
    save_replicas(database, rows, routing_changed=True)
    for name in ("chat-2", "chat-9"):
        with pytest.raises(ControlError, match=r"no replica .* to drain; it has chat-0, chat-1"):
            drain_replica(database, "chat", name, ANN)
    with pytest.raises(ControlError, match="only replica of a that is ready; restart the version"):
        drain_replica(database, "chat", "chat-0", ANN)
    with pytest.raises(ControlError, match="on this machine alone"):
        drain_replica(database, "chat", "chat-3", ANN, force=True)
    drain_replica(database, "chat", "chat-1", ANN)
    drain_replica(database, "chat", "chat-0", ANN, force=True)
    drain_replica(database, "chat", "chat-1", ANN)
    drains = read_desired(database).deployments["chat"].drains
    assert [name for name, _ in drains] == ["chat-0", "chat-1"]
    assert {one.kind for one in read_history(database, "chat")} == {"apply", "drain"}


@pytest.mark.service
async def test_replicas_are_replaced_under_load_and_no_request_is_lost(home: Home) -> None:
    wanted = deployment(echo("a", "a1", count=2))
    database = prepare(home, wanted)
    async with running_controller(home) as controller, asking(controller.gateway_url) as clients:
        before = by_id(read_fleet(database))
        await clients.progress()
        drain_replica(database, "m", "m-0", ANN)
        await until_state(
            database,
            lambda found: (
                settled(read_desired(database).deployments["m"])(found)
                and all(row.pid != before["m-0"].pid for row in found.replicas)
            ),
        )
        after = by_id(read_fleet(database))
        assert before["m-1"].pid in {row.pid for row in after.values()}, "the other one stays"
        restart_version(database, "m", "a", ANN)
        now = read_desired(database).deployments["m"]
        assert now.versions[0].revision == "a1+1"
        await until_state(database, settled(now))
        fresh = {row.pid for row in by_id(read_fleet(database)).values()}
        assert not fresh & {row.pid for row in after.values()}
        # The order to drain is for the process of then, not for who has its name now.
        names = {name for name, _ in now.drains}
        want(database, replace(now, versions=(replace(now.versions[0], weight=2.0),)))
        await clients.progress()
        assert {row.pid for row in by_id(read_fleet(database)).values()} == fresh
        assert names == {"m-0"}
    database.close()
