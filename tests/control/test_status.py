"""How far a version is, told from rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thrifty.control.status import VersionState, describe_versions
from thrifty.db.desired_state import DesiredDeployment, DesiredReplicas, DesiredVersion
from thrifty.db.fleet import DeploymentSettings, ReplicaRow


def version(label: str = "a", revision: str = "r1", count: int = 1) -> DesiredVersion:
    return DesiredVersion(
        label, "m@v1", "echo", revision, None, {}, replicas=DesiredReplicas(count)
    )


def deployment(*versions: DesiredVersion) -> DesiredDeployment:
    return DesiredDeployment("m", "decoder", DeploymentSettings(), versions)


def replica(number: int, state: str, revision: str = "r1", **changes: Any) -> ReplicaRow:
    row = ReplicaRow(f"m-{number}", "m", "echo", "a", revision, None, "http://x", state)
    return replace(row, **changes)


def tell(desired: DesiredDeployment, row: Any, *replicas: ReplicaRow, **messages: str) -> list[str]:
    found = describe_versions(
        desired, row, replicas, {("m", label): text for label, text in messages.items()}
    )
    return [f"{status.label} {status}" for status in found]


def test_what_is_as_desired_is_ready() -> None:
    one = deployment(version(count=2))
    assert tell(one, one.row, replica(0, "ready"), replica(1, "ready")) == ["a ready"]
    (status,) = describe_versions(one, one.row, [replica(0, "ready"), replica(1, "ready")], {})
    assert (status.ready, status.wanted, status.state) == (2, 2, VersionState.READY)


def test_what_is_on_its_way_says_how_far() -> None:
    one = deployment(version(count=2))
    assert tell(one, one.row, replica(0, "ready"), replica(1, "starting")) == [
        "a rolling: 1 of 2 replicas ready"
    ]
    assert tell(one, None) == ["a rolling: 0 of 2 replicas ready"]
    new = deployment(version("a", "r2"))
    assert tell(new, one.row, replica(0, "ready"), replica(1, "starting", "r2")) == [
        "a rolling: 0 of 1 replica ready, 1 of the revision before"
    ]
    # The new one answers, and the old one drains.
    assert tell(new, new.row, replica(0, "draining"), replica(1, "ready", "r2")) == [
        "a rolling: 1 of 1 replica ready, 1 of the revision before"
    ]


def test_what_does_not_get_on_says_why() -> None:
    old, new = deployment(version()), deployment(version("a", "r2"))
    loop = replica(1, "crash_loop", "r2", message="no weights\ntraceback", restarts=5)
    assert tell(new, old.row, replica(0, "ready"), loop) == [
        "a waiting: m-1 is in a crash loop: no weights"
    ]
    silent = replica(1, "unhealthy", "r2", message="no answer")
    assert tell(new, old.row, replica(0, "ready"), silent) == [
        "a waiting: m-1 is unhealthy: no answer"
    ]
    again = replica(1, "starting", "r2", message="it ended", restarts=1)
    assert tell(new, old.row, replica(0, "ready"), again) == [
        "a waiting: m-1 has ended before and starts again (restarts: 1): it ended"
    ]
    assert tell(new, old.row, replica(0, "ready"), a="no memory") == ["a waiting: no memory"]
    # What is wrong with the old one does not hold up the new one.
    assert tell(new, old.row, replica(0, "unhealthy"), replica(1, "starting", "r2")) == [
        "a rolling: 0 of 1 replica ready, 1 of the revision before"
    ]


def test_a_version_that_is_still_needed_is_told_too() -> None:
    old, new = deployment(version("a")), deployment(version("b", "r2"))
    both = deployment(version("b", "r2"), version("a"))
    assert tell(new, both.row, replica(0, "ready")) == [
        "b rolling: 0 of 1 replica ready",
        "a rolling: goes once what takes its place is ready",
    ]
    assert describe_versions(None, old.row, [replica(0, "ready")], {})[0].ready == 1
