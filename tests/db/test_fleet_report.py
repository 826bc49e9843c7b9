"""Publishing a fleet: complete, in one transaction, and only for the state it was made for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.db.databases import KINDS, open_kind
from thrifty.db import Database
from thrifty.db.desired import DesiredChange, read_desired_change, write_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.fleet import DeploymentRow, DeploymentSettings, ReplicaRow, read_fleet
from thrifty.db.fleet_report import FleetReport, publish_fleet
from thrifty.errors import StaleStateError


@pytest.fixture(params=KINDS)
def database(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


def desired(name: str = "m", **weights: float) -> DesiredDeployment:
    versions = tuple(
        DesiredVersion(label, "echo", "echo", "r1", None, {}, weight=weight)
        for label, weight in (weights or {"a": 1.0}).items()
    )
    return DesiredDeployment(name, "decoder", DeploymentSettings(), versions)


def replica(number: int, state: str = "ready", **changes: Any) -> ReplicaRow:
    row = ReplicaRow(f"m-{number}", "m", "echo", "a", "r1", None, "http://127.0.0.1:1", state)
    return replace(row, **changes)


def report(
    *replicas: ReplicaRow,
    rows: tuple[DeploymentRow, ...] = (desired().row,),
    messages: dict[tuple[str, str], str] | None = None,
) -> FleetReport:
    return FleetReport(
        {row.name: row for row in rows}, messages or {}, {one.id: one for one in replicas}
    )


def test_a_first_report_replaces_everything(database: Database) -> None:
    old = report(replica(7), rows=(desired("old").row,), messages={("old", "a"): "why"})
    publish_fleet(database, old, None, change_id=0)
    assert read_fleet(database).messages == {("old", "a"): "why"}
    new = report(replica(0), replica(1))
    publish_fleet(database, new, None, change_id=0)
    state = read_fleet(database)
    assert state.deployments == [desired().row]
    assert state.replicas == [replica(0), replica(1)]
    assert state.messages == {}


def test_differences_are_written_and_announced(database: Database) -> None:
    first = report(replica(0), replica(1))
    publish_fleet(database, first, None, change_id=0)
    before = read_fleet(database).change
    second = report(replica(0, "draining"), messages={("m", "a"): "no memory"})
    publish_fleet(database, second, first, change_id=0)
    state = read_fleet(database)
    assert [row.state for row in state.replicas] == ["draining"]
    assert state.messages == {("m", "a"): "no memory"}
    assert state.change > before
    third = report(replica(0, "draining"))
    publish_fleet(database, third, second, change_id=0)
    assert read_fleet(database).messages == {}
    gone = FleetReport({}, {}, {})
    publish_fleet(database, gone, third, change_id=0)
    state = read_fleet(database)
    assert (state.deployments, state.replicas) == ([], [])


def test_figures_do_not_make_gateways_reload(database: Database) -> None:
    first = report(replica(0))
    publish_fleet(database, first, None, change_id=0)
    before = read_fleet(database).change
    second = report(replica(0, memory_bytes=5, load={"running": 1}))
    publish_fleet(database, second, first, change_id=0)
    state = read_fleet(database)
    assert state.change == before
    assert (state.replicas[0].memory_bytes, state.replicas[0].load) == (5, {"running": 1})


def test_newer_weights_are_not_overwritten(database: Database) -> None:
    changes = [DesiredChange("m", desired(a=1, b=1))]
    by: dict[str, Any] = {"who": "ann", "why": ""}
    read = write_desired(database, changes, read_change_id=0, kind="apply", **by)
    first = report(rows=(desired(a=1, b=1).row,))
    publish_fleet(database, first, None, change_id=read)
    changes = [DesiredChange("m", desired(a=9, b=1))]
    write_desired(database, changes, read_change_id=read, kind="traffic", **by)
    late = report(replica(0), rows=(desired(a=1, b=1).row,))
    with pytest.raises(StaleStateError, match=f"not {read}"):
        publish_fleet(database, late, None, change_id=read)
    state = read_fleet(database)
    assert [version.weight for version in state.deployments[0].versions] == [9, 1]
    assert state.replicas == []
    newest = read_desired_change(database)
    publish_fleet(
        database, report(replica(0), rows=(desired(a=9, b=1).row,)), None, change_id=newest
    )
    assert len(read_fleet(database).replicas) == 1


def test_a_message_may_hold_anything(database: Database) -> None:
    odd = report(replica(0, message="\x00" + "x" * 9), messages={("m", "a"): "n\x00o\ud800"})
    publish_fleet(database, odd, None, change_id=0)
    assert read_fleet(database).messages[("m", "a")].startswith("n")
