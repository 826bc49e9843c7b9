"""Requests that wait while their version has no ready replica.

They wait in the version's fair queue, like those that find no free slot: bounded in number and
bytes, each until its deadline. A version that is at zero by intent wakes for them. Otherwise they
wait only if no other version, no fallback deployment and no reason of a replica that cannot start
says that it is in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from thrifty.gateway.cache.single_flight import SingleFlight
from thrifty.gateway.state.call import Call
from thrifty.gateway.state.concurrency import NoReplica, cannot_start, no_replica_ready
from thrifty.gateway.state.version import Version

OnHeld = Callable[[Version], None]
"""Called when a request begins to wait at a version without a ready replica."""


def check_hold(call: Call, version: Version, on_held: OnHeld) -> None:
    """Let a call wait for a version without a ready replica, and wake the version if it is at
    zero by intent. Raises `NoReplica` if another version can answer, and a 503 if waiting is in
    vain.
    """
    if not version.asleep:
        if has_alternative(call):
            raise NoReplica
        require_startable(version)
        if not call.delivery.may_wait:
            raise no_replica_ready(version.concurrency.name, version.limits.wait_timeout_s)
    if not version.ready:
        version.note_held(time.perf_counter())
        on_held(version)


def require_startable(version: Version) -> None:
    """Raise a 503 with the replica's own reason if the version cannot start."""
    if version.fault is not None and not version.ready:
        raise cannot_start(version.concurrency.name, version.fault)


def has_alternative(call: Call) -> bool:
    """Whether another version could answer."""
    target = call.placed
    if target.pinned or target.deployment.name != target.version.deployment:
        return False
    others = target.deployment.alternatives(target.conversation_id, target.version)
    return any(other.available and other.label not in target.refused for other in others)


def find_patience(version: Version) -> float:
    """How long a request waits for a slot, or for a version at zero to wake, in seconds."""
    limits, starts = version.limits, version.asleep or version.settings.on_demand
    return limits.wake_timeout_s if starts else limits.wait_timeout_s


def cancel_unless_followed(flight: SingleFlight) -> Callable[[], None]:
    """What to do when the client of a waiting request is gone: the request leaves the queue, unless
    others wait for its answer.
    """
    task = asyncio.current_task()

    def client_gone() -> None:
        if not flight.followers and task is not None:
            task.cancel()

    return client_gone
