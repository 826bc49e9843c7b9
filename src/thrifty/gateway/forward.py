"""To a replica and back: choose, send, relay, and send again what may be sent again.

What fails before the first byte has gone to the client is sent elsewhere, inside a budget. A
request that a replica took and died of is sent once more and no oftener: it may be the reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from thrifty.gateway.cache.flights import Flight, Landing
from thrifty.gateway.call import Call
from thrifty.gateway.relay import Relay
from thrifty.gateway.retry_budget import RetryBudget
from thrifty.gateway.table import Deployment, Replica, RoutingTable
from thrifty.observe.metrics import GatewayMetrics
from thrifty.wire.client import (
    Answer,
    BrokenResponse,
    ConnectFailed,
    HttpClient,
    NoResponse,
    TransportError,
)
from thrifty.wire.errors import SERVER, WireError, unavailable
from thrifty.wire.server import JSON_TYPE
from thrifty.wire.sse import parse_usage

log = logging.getLogger(__name__)

MAX_SENDS = 2
MAX_CONNECTS = 5
RETRIABLE_STATUSES = frozenset({500, 502, 503, 504})
BACKOFF_S = 0.05

_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class _Refused(Exception):
    """A replica answered with an error that another one may not give."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


class Forwarder:
    """Sends calls to replicas."""

    def __init__(
        self, client: HttpClient, table: RoutingTable, metrics: GatewayMetrics, *, capture: bool
    ) -> None:
        self._client = client
        self._table = table
        self._metrics = metrics
        self._capture = capture
        self._budget = RetryBudget()
        self._streams: set[tuple[Call, Relay, Answer]] = set()
        self._headers: dict[str, bytes] = {}
        self.on_chosen: Callable[[Call, Replica], None] | None = None
        """Told of every call and the replica that it goes to; set while batches run."""

    async def forward(self, call: Call, flight: Flight | None) -> Landing:
        """Answer the call from a replica; returns what came, for the cache and for followers.

        Raises `WireError` where nothing was sent to the client, `ClientGone` where nobody waits.
        """
        deployment = call.deployment
        assert deployment is not None
        self._budget.earn()
        body = _prepare_body(call, deployment)
        tried: set[str] = set(call.avoid)
        sends = connects = 0
        if flight is not None:
            # Others may wait for this generation: it goes on without its first client.
            call.exchange.on_disconnect = _do_nothing
        while True:
            replica = await self._choose(call, tried, flight)
            call.attempts += 1
            replica.in_flight += 1
            try:
                if self.on_chosen is not None:
                    self.on_chosen(call, replica)
                return await self._attempt(call, replica, body, flight)
            except ConnectFailed as error:
                failure: Exception = error
                connects += 1
                last_chance = connects >= MAX_CONNECTS
            except (NoResponse, BrokenResponse, _Refused) as error:
                failure = error
                sends += 1
                last_chance = sends >= MAX_SENDS
            finally:
                replica.in_flight -= 1
            _require_listener(call, flight)
            if not isinstance(failure, _Refused) or failure.status != 503:
                replica.suspect()
            if call.priority and (flight is None or not flight.followers):
                last_chance = True  # the batch tries again, later
            if last_chance or not self._budget.spend():
                raise _give_up(failure, call)
            log.info("%s: %s failed (%s); sent again", call.request_id, replica.id, failure)
            self._metrics.retries.labels(deployment.name).inc()
            tried.add(replica.id)
            await asyncio.sleep(BACKOFF_S * (sends + connects - 1))

    def sweep(self, now_s: float) -> None:
        """End streams whose replica has gone silent."""
        for call, relay, answer in list(self._streams):
            deployment = call.deployment
            if deployment is None or relay.paused:
                continue
            if now_s - call.last_byte_s > deployment.settings.idle_timeout_s:
                answer.fail(
                    BrokenResponse(
                        f"the replica sent nothing for {deployment.settings.idle_timeout_s:g} s"
                    )
                )
                answer.abort()

    async def _choose(self, call: Call, tried: set[str], flight: Flight | None) -> Replica:
        """A ready replica, one that was not tried if possible; waits for one if it must."""
        assert call.deployment is not None
        began_s = time.perf_counter()
        name = call.deployment.name
        try:
            while True:
                deployment = self._table.deployments.get(name)
                if deployment is None:
                    raise unavailable(f"the model '{name}' was just taken away", "model_removed")
                call.deployment = deployment
                candidates = deployment.candidates(tried) or deployment.candidates(set())
                if candidates and not (
                    tried and candidates[0].id in tried and len(candidates) == 1
                ):
                    return deployment.routing.choose(candidates)
                if candidates:
                    # The only replica just failed; it is tried again once it had a moment.
                    await deployment.wait_ready(0.3)
                    tried.clear()
                    continue
                tried.clear()
                await self._wait(call, deployment, began_s)
                _require_listener(call, flight)
        finally:
            call.queue_s += time.perf_counter() - began_s

    async def _wait(self, call: Call, deployment: Deployment, began_s: float) -> None:
        settings = deployment.settings
        left_s = settings.wait_timeout_s - (time.perf_counter() - began_s)
        if left_s <= 0:
            raise unavailable(
                f"no replica of '{deployment.name}' became ready within {settings.wait_timeout_s:g} s; "
                "'thrifty status' shows why",
                "no_replica_ready",
                retry_after_s=5.0,
            )
        if deployment.waiting >= settings.waiting:
            raise unavailable(
                f"no replica of '{deployment.name}' is ready and {deployment.waiting} requests wait "
                "already",
                "queue_full",
                retry_after_s=5.0,
            )
        deployment.waiting += 1
        try:
            await deployment.wait_ready(min(left_s, 1.0))
        finally:
            deployment.waiting -= 1

    async def _attempt(
        self, call: Call, replica: Replica, body: bytes, flight: Flight | None
    ) -> Landing:
        deployment = call.deployment
        assert deployment is not None
        call.replica = replica
        call.version = replica.version
        if flight is not None:
            flight.replica, flight.version = replica.id, replica.version
        call.sent_s = time.perf_counter()
        exchange = call.exchange

        def watch(sent: Answer) -> None:
            def client_gone() -> None:
                if flight is None or not flight.followers:
                    sent.abort()

            exchange.on_disconnect = client_gone

        answer = await self._client.open(
            replica.origin,
            "POST",
            call.endpoint.value,
            headers=b"%bx-request-id: %b\r\n"
            % (self._upstream_headers(deployment), call.request_id.encode()),
            body=body,
            head_timeout_s=deployment.settings.first_token_timeout_s,
            on_sent=watch,
        )
        call.origin_status = answer.status
        streamed = answer.headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if answer.status == 200 and streamed:
            return await self._relay(call, answer, flight)
        data = await answer.read()
        if answer.status in RETRIABLE_STATUSES:
            raise _Refused(answer.status, data)
        call.first_byte_s = call.last_byte_s = time.perf_counter()
        if answer.status == 200:
            call.usage, _ = parse_usage(data)
        content_type = answer.headers.get(b"content-type")
        headers = [(b"content-type", content_type) if content_type else JSON_TYPE, *call.headers()]
        if b"retry-after" in answer.headers:
            headers.append((b"retry-after", answer.headers[b"retry-after"]))
        exchange.respond(answer.status, data, headers)
        return Landing(answer.status, data)

    async def _relay(self, call: Call, answer: Answer, flight: Flight | None) -> Landing:
        relay = Relay(call, answer, flight, capture=self._capture or flight is not None)
        entry = (call, relay, answer)
        call.last_byte_s = time.perf_counter()
        self._streams.add(entry)
        try:
            answer.attach(relay.take)
            await answer.done
        except TransportError as error:
            _require_listener(call, flight)
            if not relay.begun:
                raise
            if call.replica is not None:
                call.replica.suspect()
            call.error = "replica_lost"
            relay.fail(f"The replica was lost while it answered: {error}.", "replica_lost")
            return Landing(error=WireError(502, "the shared generation broke off", type=SERVER,
                                           code="replica_lost"))  # fmt: skip
        finally:
            self._streams.discard(entry)
        relay.finish()
        if not relay.complete:
            call.error = "engine_error"
        return Landing(200, relay.captured)

    def _upstream_headers(self, deployment: Deployment) -> bytes:
        """Header lines that every request to this deployment carries; the client's key is not
        among them.
        """
        known = self._headers.get(deployment.name)
        if known is None:
            known = b"content-type: application/json\r\n"
            key = os.environ.get(deployment.settings.key_env or "")
            if key:
                known += b"authorization: Bearer %b\r\n" % key.encode()
            self._headers[deployment.name] = known
        return known


def _do_nothing() -> None:
    pass


def _require_listener(call: Call, flight: Flight | None) -> None:
    """Raise `ClientGone` where neither the client nor a follower waits any more."""
    if call.exchange.disconnected and not (flight is not None and flight.followers):
        raise ClientGone


def _prepare_body(call: Call, deployment: Deployment) -> bytes:
    """The bytes to send: the client's own, unless something must be added or renamed."""
    changes: dict[str, Any] = {}
    if call.stream and not call.include_usage:
        # Token counts are asked for in any case; the relay keeps them from who did not ask.
        changes["stream_options"] = {"include_usage": True}
    upstream_model = deployment.settings.upstream_model
    if upstream_model is not None and upstream_model != call.body.get("model"):
        changes["model"] = upstream_model
    if not changes:
        return call.exchange.body
    return _encode({**call.body, **changes})


def _give_up(failure: Exception, call: Call) -> WireError:
    if isinstance(failure, _Refused):
        try:
            fault = msgspec.json.decode(failure.body)["error"]
            return WireError(
                failure.status, str(fault["message"]), type=str(fault.get("type") or SERVER),
                param=fault.get("param"), code=fault.get("code") or "engine_error",
                retry_after_s=2.0 if failure.status == 503 else None,
            )  # fmt: skip
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            text = failure.body[:200].decode("utf-8", "replace")
            return WireError(502, f"a replica answered {failure.status}: {text}", type=SERVER,
                             code="engine_error")  # fmt: skip
    return WireError(
        502,
        f"no replica could answer ({call.attempts} tried; the last: {failure})",
        type=SERVER,
        code="replica_lost",
        retry_after_s=1.0,
    )
