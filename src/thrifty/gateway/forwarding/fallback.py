"""Fallbacks: another version or another deployment answers if the chosen version cannot.

If the chosen version has no ready replica, the next version in the conversation's order answers. A
fallback deployment answers if nothing has been sent to the client and the first deployment has no
ready version or failed with a 5xx. A version that is at zero by intent wakes instead: another one
answers only if it cannot start, or takes longer than requests wait. Neither answer is cached under
the first key. A pinned request only ever goes to its version.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from msgspec.structs import replace

from thrifty.gateway.cache.single_flight import Result, SingleFlight
from thrifty.gateway.forwarding.forward import Forwarder
from thrifty.gateway.forwarding.hold import require_startable
from thrifty.gateway.state.call import Call, Delivery, Target
from thrifty.gateway.state.concurrency import NoReplica, no_replica_ready
from thrifty.gateway.state.deployment import Deployment
from thrifty.gateway.state.table import RoutingTable
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import WireError, unavailable
from thrifty.openai.fields import check_honoured

log = logging.getLogger(__name__)


def forward_or_fall_back(
    forwarder: Forwarder,
    table: RoutingTable,
    metrics: GatewayMetrics,
    call: Call,
    flight: SingleFlight | None,
) -> Coroutine[Any, Any, Result]:
    """Like `Forwarder.forward`, by the call's version, another version, or a fallback deployment.
    Raises the first deployment's error if none could answer.
    """
    target = call.placed
    if target.pinned:
        return _forward_pinned(forwarder, call, flight)
    if not target.deployment.settings.fallback:
        return _forward(forwarder, table, metrics, call, flight)
    return _fall_back(forwarder, table, metrics, call, flight)


async def _fall_back(
    forwarder: Forwarder,
    table: RoutingTable,
    metrics: GatewayMetrics,
    call: Call,
    flight: SingleFlight | None,
) -> Result:
    """Forward to the call's deployment, or else to the first fallback that can answer."""
    target = call.placed
    first = target.deployment
    fallbacks = [d for d in _find_fallbacks(first, table) if _can_take(call, d)]
    failure: WireError | None = None
    if first.ready or not any(d.ready for d in fallbacks):
        call.delivery.may_wait = not any(d.ready for d in fallbacks)
        try:
            return await _forward(forwarder, table, metrics, call, flight)
        except WireError as error:
            if error.status < 500:
                raise
            failure = error
    for place, deployment in enumerate(fallbacks, start=1):
        if not deployment.ready:
            continue
        log.info(
            "%s: %s answers for %s", call.response_id.text, deployment.name, first.name,
            extra=call.log_ids,
        )  # fmt: skip
        metrics.fallbacks.labels(first.name, deployment.name).inc()
        version = deployment.choose(target.conversation_id)
        _retarget(
            call, Target(deployment, version, version, target.conversation_id, fell_back=True)
        )
        call.delivery.may_wait = not any(d.ready for d in fallbacks[place:])
        try:
            return await _forward(forwarder, table, metrics, call, flight)
        except WireError as error:
            if error.status < 500:
                raise
            failure = failure or error
    if failure is None:
        # The fallbacks' last replica has just gone: wait for the first deployment as usual.
        _retarget(call, target)
        call.delivery.may_wait = True
        return await _forward(forwarder, table, metrics, call, flight)
    raise failure


async def _forward_pinned(forwarder: Forwarder, call: Call, flight: SingleFlight | None) -> Result:
    call.delivery.may_wait = False
    try:
        return await forwarder.forward(call, flight)
    except NoReplica:
        version = call.placed.version
        require_startable(version)
        raise no_replica_ready(version.concurrency.name, 0) from None


async def _forward(
    forwarder: Forwarder,
    table: RoutingTable,
    metrics: GatewayMetrics,
    call: Call,
    flight: SingleFlight | None,
) -> Result:
    """Forward to the call's version, and to another one if it has no ready replica left."""
    while True:
        try:
            return await forwarder.forward(call, flight)
        except NoReplica:
            target = call.placed
            deployment = table.deployments.get(target.version.deployment)
            if deployment is None:
                name = target.version.deployment
                raise unavailable(
                    f"the model '{name}' was removed while the request waited", "model_removed"
                ) from None
            _reroute(call, target, deployment, metrics)


def _reroute(call: Call, target: Target, deployment: Deployment, metrics: GatewayMetrics) -> None:
    """Give a call another version. Raises a 400 if that version cannot honour the request."""
    left = target.version
    chosen = deployment.choose(target.conversation_id)
    others = deployment.alternatives(target.conversation_id, chosen)
    ready = [v for v in (chosen, *others) if v.available]
    version = next((v for v in ready if v.label not in target.refused), chosen)
    check_honoured(
        call.admitted.body, call.endpoint, version.honours, version.row.engine, version.label
    )
    metrics.reroutes.labels(deployment.name, left.label, version.label).inc()
    # The version that the conversation is assigned to stays on record as the chosen one.
    _retarget(call, replace(target, deployment=deployment, version=version, pinned=False))


def _retarget(call: Call, target: Target) -> None:
    """Start over with another target, keeping the time spent waiting, the attempts, and whether the
    call may wait.
    """
    before = call.delivery
    call.target = target
    call.delivery = Delivery(
        queue_s=before.queue_s, attempts=before.attempts, may_wait=before.may_wait
    )


def _find_fallbacks(first: Deployment, table: RoutingTable) -> list[Deployment]:
    """The fallbacks and their own fallbacks, each once."""
    found: list[Deployment] = []
    seen, names = {first.name}, list(first.settings.fallback)
    while names:
        name = names.pop(0)
        deployment = table.deployments.get(name)
        if deployment is not None and name not in seen:
            seen.add(name)
            found.append(deployment)
            names += deployment.settings.fallback
    return found


def _can_take(call: Call, deployment: Deployment) -> bool:
    """Whether a deployment serves the same model family and honours the request's fields."""
    target = call.placed
    if target.deployment.row.family != deployment.row.family:
        return False
    version = deployment.choose(target.conversation_id)
    try:
        check_honoured(call.admitted.body, call.endpoint, version.honours, version.row.engine)
    except WireError:
        return False
    return True
