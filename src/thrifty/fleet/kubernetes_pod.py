"""What a pod says of the replica in it: its state, and in plain words what keeps it from serving.

Everything is read from the pod's own status, which the kubelet and the control plane keep; nobody is
asked for events, logs or nodes, so that no right to read them is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from thrifty.http.origin import FLEET_SCHEME
from thrifty.kubernetes.pods import REPLICA_PORT, has_certificates
from thrifty.types import ReplicaState

Object = Mapping[str, Any]

NO_ADDRESS = "http://127.0.0.1:1"
"""What a replica without an address yet has in its row."""
CRASH_LOOP_AFTER = 5
"""Ends in a row; sooner than that it is told that it ended, and starts again."""
MAX_MESSAGE = 500

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
         "ImageInspectError", "RegistryUnavailable"}  # fmt: skip
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True)
class PodView:
    """A pod, as far as a fleet goes by it."""

    name: str
    uid: str
    state: ReplicaState
    message: str | None
    url: str
    restarts: int
    ready_after_s: float
    terminating: bool
    node: str

    @property
    def counts(self) -> bool:
        """Whether its ReplicaSet counts it among its pods: it neither ended nor is about to."""
        return not self.terminating and self.state is not ReplicaState.STOPPED


def read_pod(pod: Object, *, served_before: bool) -> PodView:
    """A pod of ours. `served_before` says whether it was ready once since its container started."""
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    container = _first(status.get("containerStatuses"))
    terminating = bool(metadata.get("deletionTimestamp"))
    state, message = _find_state(pod, status, container, served_before=served_before)
    if terminating and state is not ReplicaState.STOPPED:
        state, message = ReplicaState.DRAINING, _say_why_it_goes(status)
    address = status.get("podIP") or ""
    host = f"[{address}]" if ":" in address else address
    scheme = FLEET_SCHEME if has_certificates(pod) else "http"
    return PodView(
        name=str(metadata.get("name")), uid=str(metadata.get("uid")), state=state,
        message=message[:MAX_MESSAGE] if message else None,
        url=f"{scheme}://{host}:{REPLICA_PORT}" if host else NO_ADDRESS,
        restarts=int(container.get("restartCount") or 0),
        ready_after_s=_find_start_s(metadata, status),
        terminating=terminating, node=str((pod.get("spec") or {}).get("nodeName") or ""),
    )  # fmt: skip


def _find_state(
    pod: Object, status: Object, container: Object, *, served_before: bool
) -> tuple[ReplicaState, str | None]:
    phase = status.get("phase")
    if phase in ("Failed", "Succeeded"):
        return ReplicaState.STOPPED, _say_why_it_ended(status, container)
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    if (conditions.get("Ready") or {}).get("status") == "True":
        return ReplicaState.READY, None
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, text = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason in _PULL:
        image = container.get("image") or _find_image(pod)
        return ReplicaState.FAILED, f"the image {image} cannot be pulled: {text or reason}"
    if reason in _CONFIG:
        return ReplicaState.FAILED, f"its container cannot be made: {text or reason}"
    if reason == "CrashLoopBackOff":
        restarts = int(container.get("restartCount") or 0)
        lost = restarts >= CRASH_LOOP_AFTER
        state = ReplicaState.CRASH_LOOP if lost else ReplicaState.BACKOFF
        return state, _say_last_end(container)
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False":
        why = scheduled.get("message") or scheduled.get("reason") or "no reason is given"
        return ReplicaState.STARTING, f"no node can take it: {why}"
    if "running" in (container.get("state") or {}) and served_before:
        node = (pod.get("spec") or {}).get("nodeName")
        return ReplicaState.UNHEALTHY, (
            f"does not answer its probe, or its node {node} does not answer the cluster"
        )
    ended = _say_last_end(container) if container.get("restartCount") else None
    return ReplicaState.STARTING, ended


def _find_image(pod: Object) -> str:
    container = _first((pod.get("spec") or {}).get("containers"))
    return str(container.get("image") or "")


def _first(listed: Sequence[Object] | None) -> Object:
    """The one container of our pods, or nothing yet."""
    return listed[0] if listed else {}


def _say_last_end(container: Object) -> str:
    """How its container ended the last time."""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended:
        ended = (container.get("state") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return "its container took more memory than its limit and was killed"
    text = str(ended.get("message") or "").strip()
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    tail = errors[-1].removeprefix("Error: ") if errors else " ".join(text.splitlines()[-3:])
    status = ended.get("exitCode")
    how = (
        f"its container ended with status {status}" if status is not None else "its container ended"
    )
    return f"{how}{f': {tail}' if tail else ''}"


def _say_why_it_ended(status: Object, container: Object) -> str:
    if status.get("reason") == "Evicted":
        return f"its node evicted it: {status.get('message') or 'no reason is given'}"
    if status.get("reason"):
        return f"its pod ended ({status['reason']}): {status.get('message') or ''}".rstrip(": ")
    return _say_last_end(container)


def _say_why_it_goes(status: Object) -> str | None:
    for one in status.get("conditions") or ():
        if one.get("type") == "DisruptionTarget" and one.get("status") == "True":
            return f"is moved away: {one.get('message') or one.get('reason')}"
    if status.get("reason") == "NodeLost":
        return "its node does not answer any more"
    return None


def _find_start_s(metadata: Object, status: Object) -> float:
    """How long it took until it was ready the last time; 0 where it is not."""
    for one in status.get("conditions") or ():
        if one.get("type") == "Ready" and one.get("status") == "True":
            began = parse_time_s(metadata.get("creationTimestamp"))
            ready = parse_time_s(one.get("lastTransitionTime"))
            # Times have whole seconds.
            return max(0.5, ready - began) if began and ready else 0.0
    return 0.0


def parse_time_s(text: Any) -> float:
    """A time as Kubernetes writes it, in seconds since 1970; 0 where there is none."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
