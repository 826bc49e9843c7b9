"""What a pod's status says of its replica, in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from thrifty.fleet.kubernetes_pod import NO_ADDRESS, read_pod
from thrifty.types import ReplicaState


def pod(
    *, phase: str = "Running", ready: bool | None = None, state: dict[str, Any] | None = None,
    restarts: int = 0, last: dict[str, Any] | None = None, conditions: Any = (), **status: Any,
) -> dict[str, Any]:  # fmt: skip
    """A pod as the API server gives it."""
    found = list(conditions)
    if ready is not None:
        found.append(
            {
                "type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:09Z",
            }
        )  # fmt: skip
    container = {
        "image": "i:1", "restartCount": restarts, "state": state or {"running": {}},
        "lastState": {"terminated": last} if last else {},
    }  # fmt: skip
    return {
        "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:02Z"},
        "spec": {"nodeName": "n1", "containers": [{"image": "i:1"}]},
        "status": {
            "phase": phase, "conditions": found, "containerStatuses": [container],
            "podIP": "10.1.2.3", **status,
        },
    }  # fmt: skip


def test_a_ready_pod_has_an_address_and_says_how_long_it_took() -> None:
    view = read_pod(pod(ready=True), served_before=False)
    assert (view.state, view.message) == (ReplicaState.READY, None)
    assert view.url == "http://10.1.2.3:8000"
    assert view.ready_after_s == 7.0
    assert view.counts


def test_a_new_pod_without_anything_starts() -> None:
    empty = {"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {"phase": "Pending"}}
    view = read_pod(empty, served_before=False)
    assert (view.state, view.message, view.url) == (ReplicaState.STARTING, None, NO_ADDRESS)
    assert read_pod(pod(podIP="fd00::1"), served_before=False).url == "http://[fd00::1]:8000"


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "state", "words"),
    [
        (pod(state=waiting("ErrImagePull", "not found")), "failed", "image i:1 cannot be pulled: not"),
        (pod(state=waiting("ImagePullBackOff")), "failed", "cannot be pulled: ImagePullBackOff"),
        (
            pod(state=waiting("CreateContainerConfigError", 'secret "thrifty" not found')),
            "failed", 'container cannot be made: secret "thrifty" not found',
        ),
        (pod(phase="Pending", conditions=[UNSCHEDULABLE]), "starting", "no node can take it: 0/3"),
        (
            pod(state=waiting("CrashLoopBackOff"), restarts=1,
                last={"exitCode": 1, "message": "noise\nError: no key\nmore"}),
            "backoff", "ended with status 1: no key",
        ),
        (
            pod(state=waiting("CrashLoopBackOff"), restarts=5, last={"reason": "OOMKilled"}),
            "crash_loop", "more memory than its limit",
        ),
        (
            pod(restarts=1, ready=False, last={"exitCode": 137}), "starting",
            "ended with status 137",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="The node was low on memory."),
            "stopped", "its node evicted it: The node was low on memory.",
        ),
        (pod(phase="Succeeded", state={"terminated": {"exitCode": 0}}), "stopped", "status 0"),
    ],
)  # fmt: skip
def test_what_keeps_it_from_serving_is_told(given: Any, state: str, words: str) -> None:
    view = read_pod(given, served_before=False)
    assert view.state == state
    assert words in str(view.message)


def test_one_that_served_and_does_not_answer_is_unhealthy_and_one_that_never_did_starts() -> None:
    view = read_pod(pod(ready=False), served_before=True)
    assert view.state is ReplicaState.UNHEALTHY
    assert "n1" in str(view.message)
    assert read_pod(pod(ready=False), served_before=False).state is ReplicaState.STARTING


def test_one_that_is_deleted_drains_whatever_else_it_says() -> None:
    going = pod(ready=True, reason="NodeLost")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    view = read_pod(going, served_before=True)
    assert view.state is ReplicaState.DRAINING
    assert "node does not answer" in str(view.message)
    assert not view.counts


def test_a_long_reason_is_cut() -> None:
    view = read_pod(pod(state=waiting("ErrImagePull", "x" * 5000)), served_before=False)
    assert len(str(view.message)) == 500
