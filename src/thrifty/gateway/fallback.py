"""When a deployment cannot answer, another one does: its fallbacks, in their order.

A fallback has its turn where nothing has been sent to the client and the deployment has no ready
replica, or failed with a 5xx. What it answers is not kept in the cache: the key is the first
deployment's.
"""

from __future__ import annotations

import logging

from thrifty.gateway.cache.single_flight import Result, SingleFlight
from thrifty.gateway.call import Call
from thrifty.gateway.forward import Forwarder
from thrifty.gateway.routing import UNKNOWN
from thrifty.gateway.table import Deployment, RoutingTable
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import WireError
from thrifty.openai.fields import check_fields

log = logging.getLogger(__name__)


async def forward_or_fall_back(
    forwarder: Forwarder,
    table: RoutingTable,
    metrics: GatewayMetrics,
    call: Call,
    flight: SingleFlight | None,
) -> Result:
    """As `Forwarder.forward`, by the call's deployment or one of its fallbacks. Raises the first
    deployment's error where none could answer.
    """
    first = call.deployment
    assert first is not None
    if not first.settings.fallback:
        return await forwarder.forward(call, flight)
    standing_in = [d for d in _find_fallbacks(first, table) if _can_take(call, d)]
    failure: WireError | None = None
    if first.ready or not any(d.ready for d in standing_in):
        call.may_wait = not any(d.ready for d in standing_in)
        try:
            return await forwarder.forward(call, flight)
        except WireError as error:
            if error.status < 500:
                raise
            failure = error
    call.may_wait = True
    for deployment in standing_in:
        if not deployment.ready:
            continue
        log.info("%s: %s answers for %s", call.request_id, deployment.name, first.name)
        metrics.fallbacks.labels(first.name, deployment.name).inc()
        call.deployment, call.fell_back = deployment, True
        call.routed, call.replica, call.load, call.version = UNKNOWN, None, None, ""
        try:
            return await forwarder.forward(call, flight)
        except WireError as error:
            if error.status < 500:
                raise
            failure = failure or error
    if failure is None:
        # Their last replica has gone just now: wait for the first deployment's as ever.
        call.deployment = first
        return await forwarder.forward(call, flight)
    raise failure


def _find_fallbacks(first: Deployment, table: RoutingTable) -> list[Deployment]:
    """The fallbacks, and theirs, each once."""
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
    """Whether it serves the same kind of model and honours the request's fields."""
    first = call.deployment
    if first is None or deployment.row.family != first.row.family:
        return False
    try:
        check_fields(call.body, call.endpoint, deployment.honours, deployment.row.engine)
    except WireError:
        return False
    return True
