"""Forwarding to a replica: choose, send, relay, retry.

Requests that fail before the first byte has gone to the client are retried within a budget. A
request whose replica died after taking it is retried only once, because it may be the cause.

`upstream_request` builds what is sent, `hedge` asks a second replica if the first is slow, `relay`
passes on streams, and `failures` makes the client's error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from thrifty.gateway.cache.single_flight import Result, SingleFlight
from thrifty.gateway.forwarding.failures import (
    RETRIABLE_STATUSES,
    ReplicaError,
    is_busy,
    make_error,
)
from thrifty.gateway.forwarding.hedge import Hedger
from thrifty.gateway.forwarding.hold import (
    cancel_unless_followed,
    check_hold,
    find_patience,
    has_alternative,
)
from thrifty.gateway.forwarding.relay import Relay
from thrifty.gateway.forwarding.retry_budget import RetryBudget
from thrifty.gateway.forwarding.unreported_usage import read_usage
from thrifty.gateway.forwarding.upstream_request import (
    adds_usage,
    asks_usage,
    make_headers,
    prepare_body,
)
from thrifty.gateway.forwarding.upstream_response import (
    check_coding,
    choose_headers,
    refuses_usage,
    stream_whole,
)
from thrifty.gateway.state.call import BATCH, Call
from thrifty.gateway.state.concurrency import (
    DEADLINE_CODES,
    ConcurrencyLimiter,
    NoReplica,
    deadline_exceeded,
    no_replica_ready,
)
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.router import UNKNOWN, Outstanding
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.http.client import (
    Answer,
    BrokenResponse,
    ConnectFailed,
    HttpClient,
    NoResponse,
    TransportError,
)
from thrifty.http.server import EVENT_STREAM_HEADERS
from thrifty.http.types import JSON_TYPE, is_event_stream
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.request_metrics import Histogram
from thrifty.observe.trace import TRACEPARENT, pass_on
from thrifty.openai.errors import SERVER, WireError, unavailable
from thrifty.openai.fields import STREAMED
from thrifty.openai.id_rewrite import replace_id
from thrifty.openai.stream_answers import assemble_stream

log = logging.getLogger(__name__)

MAX_SENDS = 2
MAX_CONNECTS = 5
BACKOFF_S = 0.05
MAX_BACKOFF_S = 0.5


class ClientGone(Exception):
    """The client disconnected; there is no one to answer."""


class Forwarder:
    """Sends calls to replicas."""

    def __init__(
        self, client: HttpClient, table: RoutingTable, metrics: GatewayMetrics, *, capture: bool
    ) -> None:
        """`capture` keeps the content of streams for recorded texts."""
        self._client = client
        self._table = table
        self._metrics = metrics
        self._capture = capture
        self._budget = RetryBudget()
        self._hedger = Hedger(self._open, self._pick, self._note_failure, self._budget, metrics)
        self._streams: set[tuple[Call, Relay, Answer]] = set()
        self._reads: set[tuple[Call, Answer]] = set()
        self.on_chosen: Callable[[Call, Replica], None] | None = None
        """Called with each call and its replica; set while batches run."""
        self.on_held: Callable[[Version], None] = lambda version: None
        """Called when a call begins to wait at a version without a ready replica."""

    def forward(self, call: Call, flight: SingleFlight | None) -> Coroutine[Any, Any, Result]:
        """Answer the call from a replica; returns the answer for the cache and for followers.

        Raises `WireError` if nothing was sent to the client, `ClientGone` if no one waits.
        """
        if call.expired:
            raise deadline_exceeded("before it could be sent to a replica")
        version = call.placed.version
        if call.priority < BATCH:
            version.demand.figures.arrivals += 1
        if version.concurrency.capacity is None:
            return self._forward(call, flight)
        return self._forward_in_slot(call, version, flight)

    async def _forward_in_slot(
        self, call: Call, version: Version, flight: SingleFlight | None
    ) -> Result:
        concurrency = version.concurrency
        if not concurrency.enter(call.tenant, call.priority):
            await self._wait_for_slot(call, concurrency, flight)
        entered_s = time.perf_counter()
        delivery = call.delivery
        delivery.may_yield = concurrency.holds_fair_share(call.tenant)
        knows_priorities = version.settings.priority_field is not None
        if delivery.may_yield and call.admitted.stream and knows_priorities:
            # Only a stream shows when its answer begins.
            delivery.idle_at = concurrency
            concurrency.begin_idle()
        try:
            _require_listener(call, flight)
            return await self._forward(call, flight)
        finally:
            delivery.end_idle()
            concurrency.leave(call.tenant, call.priority, time.perf_counter() - entered_s)

    async def _wait_for_slot(
        self, call: Call, concurrency: ConcurrencyLimiter, flight: SingleFlight | None
    ) -> None:
        """Wait for a slot in the fair queue. Raises a 503 or 504."""
        version, parsed = call.placed.version, call.admitted
        limits = version.limits
        if not concurrency.capacity:
            check_hold(call, version, self.on_held)
        if flight is not None:
            call.exchange.on_disconnect = cancel_unless_followed(flight)
        began_s = time.perf_counter()
        cost = sum(version.estimator.estimate(parsed.body, len(call.exchange.body)))
        try:
            while True:
                try:
                    return await concurrency.wait(
                        call.tenant, cost, call.priority,
                        most=limits.waiting, timeout_s=find_patience(version),
                        deadline_s=parsed.deadline_s, size=len(call.exchange.body),
                        most_bytes=limits.waiting_bytes,
                        start_s=version.estimate_start_s(began_s),
                    )  # fmt: skip
                except WireError as error:
                    shared = flight is not None and flight.followers
                    if not (shared and parsed.deadline_s) or error.code not in DEADLINE_CODES:
                        raise
                    parsed.deadline_s = 0.0  # followers without a deadline wait for it
        finally:
            _note_queued(call, began_s)

    async def _forward(self, call: Call, flight: SingleFlight | None) -> Result:
        delivery = call.delivery
        self._budget.earn()
        version = call.placed.version
        body = prepare_body(call, version)
        tried: set[str] = set(call.avoid)
        sends = connects = 0
        refused_s = 0.0
        if flight is not None:
            # Followers may wait for this generation, so it continues without its first client.
            call.exchange.on_disconnect = _do_nothing
        while True:
            _require_listener(call, flight)
            replica = self._pick_at_once(call, version, tried)
            if replica is None:
                replica = await self._choose(call, version, tried, flight)
            delivery.attempts += 1
            begun_s = time.perf_counter()
            load = version.router.begin(replica, delivery.routed, begun_s)
            delivery.load = load
            version.note_begun(replica, begun_s)
            streamed = False
            try:
                if self.on_chosen is not None:
                    self.on_chosen(call, replica)
                result = await self._attempt(call, replica, body, flight)
                self._note_answer(call, result)
                streamed = call.admitted.stream
                return result
            except ConnectFailed as error:
                failure: Exception = error
                connects += 1
                refused_s = refused_s or begun_s
                last_chance = connects >= MAX_CONNECTS and not _may_come(version, sends, refused_s)
            except (NoResponse, BrokenResponse, ReplicaError) as error:
                failure = error
                sends += 1
                last_chance = sends >= MAX_SENDS
            except BaseException:
                version.health.note_unknown(replica.id)
                raise
            finally:
                replica = delivery.replica or replica  # a hedge may have changed it
                load, ended_s = delivery.load or load, time.perf_counter()
                _end_load(load, call, ended_s, streamed=streamed)
                version.note_ended(replica, load.began_s, ended_s)
            if not (call.exchange.disconnected or call.expired) and not is_busy(failure):
                self._note_failure(version, replica)
            else:
                version.health.note_unknown(replica.id)
            if call.trace is not None:
                call.trace.fail_attempt(replica.id, type(failure).__name__)
            _require_listener(call, flight)
            if call.expired:
                if flight is None or not flight.followers:
                    raise deadline_exceeded("before a replica began to answer")
                call.admitted.deadline_s = 0.0  # followers without a deadline wait for it
            if call.priority and (flight is None or not flight.followers):
                last_chance = True  # the batch itself retries later
            # Where servers start on demand, trying again costs nobody anything.
            comes = not last_chance and _may_come(version, sends, refused_s)
            if last_chance or not (comes or self._budget.spend()):
                raise make_error(failure, call)
            log.info(
                "%s: %s failed (%s); retrying", call.response_id.text, replica.id, failure,
                extra=call.log_ids,
            )  # fmt: skip
            self._metrics.retries.labels(version.deployment).inc()
            tried.add(replica.id)
            if not sends and not version.candidates(tried) and has_alternative(call):
                # They are gone, although the table does not say so yet.
                target = call.placed
                call.target = replace(target, refused=target.refused | {version.label})
                raise NoReplica
            await asyncio.sleep(min(BACKOFF_S * (sends + connects - 1), MAX_BACKOFF_S))

    def _pick_at_once(self, call: Call, version: Version, tried: set[str]) -> Replica | None:
        """A ready replica for a call that has not failed anywhere, if there is one."""
        self._require_version(version)
        candidates = version.candidates(tried) if not tried else None
        return self._pick(call, version, candidates) if candidates else None

    async def _choose(
        self, call: Call, version: Version, tried: set[str], flight: SingleFlight | None
    ) -> Replica:
        """A ready replica, preferably an untried one; waits for one if necessary."""
        began_s = time.perf_counter()
        try:
            while True:
                self._require_version(version)
                candidates = version.candidates(tried) or version.candidates(set())
                if candidates and not (
                    tried and candidates[0].id in tried and len(candidates) == 1
                ):
                    return self._pick(call, version, candidates)
                if candidates:
                    # The only replica has just failed; it is retried after a pause.
                    version.waiting += 1
                    try:
                        await version.wait_ready(0.3)
                    finally:
                        version.waiting -= 1
                    _require_listener(call, flight)
                    tried.clear()
                    continue
                tried.clear()
                check_hold(call, version, self.on_held)
                await self._wait(call, version, began_s)
                _require_listener(call, flight)
        finally:
            _note_queued(call, began_s)

    def _require_version(self, version: Version) -> None:
        """Raise an error if the version was removed while a request was on its way to it."""
        deployment = self._table.deployments.get(version.deployment)
        if deployment is None:
            raise unavailable(
                f"the model '{version.deployment}' was removed while the request waited",
                "model_removed",
            )
        if version.label not in deployment.versions:
            raise NoReplica

    async def _wait(self, call: Call, version: Version, began_s: float) -> None:
        limits, patience_s, now_s = version.limits, find_patience(version), time.perf_counter()
        left_s = patience_s - (now_s - began_s)
        if left_s <= 0:
            start_s = version.estimate_start_s(now_s)
            raise no_replica_ready(version.concurrency.name, patience_s, start_s)
        if call.expired:
            raise deadline_exceeded("while it waited for a replica")
        if version.waiting >= limits.waiting:
            raise unavailable(
                f"no replica of '{version.concurrency.name}' is ready and {version.waiting} requests "
                "are waiting",
                "queue_full",
                retry_after_s=5.0,
            )
        version.waiting += 1
        try:
            await version.wait_ready(min(left_s, 1.0))
        finally:
            version.waiting -= 1

    def _pick(self, call: Call, version: Version, candidates: list[Replica]) -> Replica:
        """Route the call and record a trial request for the health check."""
        chosen = _route(call, version, candidates)
        if not version.health.all_healthy:
            version.health.note_sent(chosen.id, time.monotonic())
        return chosen

    async def _attempt(
        self, call: Call, replica: Replica, body: bytes, flight: SingleFlight | None
    ) -> Result:
        parsed, version, delivery = call.admitted, call.placed.version, call.delivery
        assign(call, replica, flight)
        delivery.sent_s = time.perf_counter()
        hedge_s = version.limits.hedge_s
        if hedge_s is None:
            answer = await self._open(call, replica, body, flight, [])
        else:
            answer = await self._hedger.open(call, replica, body, flight, hedge_s)
        check_coding(answer)
        headers = choose_headers(answer)
        streamed = is_event_stream(headers[0][1])
        if answer.status == 200 and streamed and parsed.stream:
            return await self._relay(call, answer, flight)
        self._reads.add(entry := (call, answer))
        try:
            data = await answer.read()
        finally:
            self._reads.discard(entry)
        status = answer.status
        if refuses_usage(call, version, replica, status, data):
            log.info("%s does not take stream_options; it is sent none from now on", replica.id)
            replica.takes_stream_options = False
            return await self._attempt(call, replica, body, flight)
        if status != 200 and (status in RETRIABLE_STATUSES or not 400 <= status < 600):
            raise ReplicaError(status, data)
        if status == 200 and streamed and (whole := assemble_stream(data)) is not None:
            # A stream that nobody asked for.
            data, headers[0] = whole, JSON_TYPE
            streamed = False
        answered = status == 200 and not streamed
        if answered:
            call.outcome.usage = read_usage(call, data)
        delivery.first_byte_s = delivery.last_byte_s = time.perf_counter()
        if answered:
            if not version.settings.accepts_response_id:
                data = replace_id(data, call.body_id)
            if (events := stream_whole(call, data)) is not None:
                call.exchange.respond(200, events, EVENT_STREAM_HEADERS, call.header_lines())
                return Result(200, data)
        call.exchange.respond(status, data, headers, call.header_lines())
        return Result(status, data, streamed)

    def _open(
        self,
        call: Call,
        replica: Replica,
        body: bytes,
        flight: SingleFlight | None,
        sent: list[Answer],
    ) -> Coroutine[Any, Any, Answer]:
        """Send the call to a replica; returns once the head of its answer has arrived. The answer
        is added to `sent` as soon as the request has been written.
        """
        version, exchange = call.placed.version, call.exchange

        def client_gone() -> None:
            if flight is None or not flight.followers:
                for answer in sent:
                    answer.abort()

        def watch(answer: Answer) -> None:
            sent.append(answer)
            exchange.on_disconnect = client_gone
            if exchange.disconnected:  # since it left, there was nothing to abort
                client_gone()

        timeout_s = version.limits.first_token_timeout_s
        deadline_s = call.admitted.deadline_s
        if deadline_s:
            timeout_s = min(timeout_s, max(0.001, deadline_s - time.perf_counter()))
        if not replica.takes_stream_options and adds_usage(call, version):
            body = prepare_body(call, version, ask_usage=False)
        origin, path = replica.locate(call.endpoint)
        lines = make_headers(version.settings.key_env)
        if call.trace is not None:
            lines += call.trace.begin_attempt(replica.id, version.label)
        elif TRACEPARENT in exchange.headers:
            lines += pass_on(exchange.headers)
        return self._client.open(
            origin,
            "POST",
            path,
            headers=b"%bx-request-id: %b\r\n" % (lines, call.response_id.text.encode()),
            body=body,
            head_timeout_s=timeout_s,
            on_sent=watch,
        )

    async def _relay(self, call: Call, answer: Answer, flight: SingleFlight | None) -> Result:
        capture = self._capture or flight is not None
        relay = Relay(
            call, answer, flight,
            capture=capture, count=not asks_usage(call), pace=self._find_pace(call),
        )  # fmt: skip
        entry = (call, relay, answer)
        delivery, deadline_s = call.delivery, call.admitted.deadline_s
        delivery.last_byte_s = time.perf_counter()
        self._streams.add(entry)
        timer = None
        if deadline_s:
            timer = asyncio.get_running_loop().call_later(
                deadline_s - delivery.last_byte_s, _end_if_late, call, relay, answer, flight
            )
        try:
            answer.attach(relay.take)
            await answer.done
        except TransportError as error:
            _require_listener(call, flight)
            if not relay.begun:
                raise
            if delivery.replica is not None:
                self._note_failure(call.placed.version, delivery.replica)
            call.outcome.error = "replica_lost"
            relay.fail(f"The replica was lost while it answered: {error}.", "replica_lost")
            return Result(error=WireError(502, "the shared generation was interrupted", type=SERVER,
                                           code="replica_lost"))  # fmt: skip
        finally:
            self._streams.discard(entry)
            if timer is not None:
                timer.cancel()
        if not relay.begun:
            raise BrokenResponse("the stream ended before its first byte")
        relay.finish()
        if not relay.complete:
            call.outcome.error = "engine_error"
        return Result(200, relay.captured, streamed=True)

    def _find_pace(self, call: Call) -> Histogram | None:
        """What takes the times between the pieces of a stream that a client reads."""
        version, replica = call.placed.version, call.delivery.replica
        if call.priority or not call.origin.counts or replica is None:
            return None
        return self._metrics.requests.watch_pieces(version.deployment, version.label, replica.id)

    def _note_answer(self, call: Call, result: Result) -> None:
        """Record a success with the version's health, unless the answer was interrupted."""
        version, delivery = call.placed.version, call.delivery
        replica = delivery.replica
        if replica is None or result.error is not None:
            return
        if version.health.note_success(replica.id, time.monotonic()):
            log.info("%s answers again and receives traffic", replica.id)
            version.resize(self._table.workers)
        usage = call.outcome.usage
        version.demand.note_answer(
            replica,
            received_s=call.received_s, sent_s=delivery.sent_s, first_s=delivery.first_byte_s,
            last_s=delivery.last_byte_s,
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            output_tokens=usage.completion_tokens if usage is not None else 0,
            streamed=call.admitted.stream,
        )  # fmt: skip
        if call.admitted.stream and version.concurrency.capacity is not None:
            version.concurrency.note_begin(delivery.first_byte_s - delivery.sent_s)

    def _note_failure(self, version: Version, replica: Replica) -> None:
        """Record a failed request with the version's health."""
        ready = version.ready_ids()
        if version.health.note_failure(replica.id, ready, time.monotonic()):
            log.warning("%s keeps failing and is ejected for a while", replica.id)
            self._metrics.ejections.labels(version.deployment, version.label, replica.id).inc()
            version.resize(self._table.workers)

    def measure_work(self, now_s: float) -> dict[str, float]:
        """By replica, about how many tokens are left to say to the requests at it."""
        work: dict[str, float] = {}
        for call in (*(entry[0] for entry in self._streams), *(entry[0] for entry in self._reads)):
            version, delivery = call.placed.version, call.delivery
            if delivery.replica is None:
                continue
            left = float(version.estimator.estimate(call.admitted.body, 0)[1])
            began_s = delivery.first_byte_s or (0.0 if call.admitted.stream else delivery.sent_s)
            if began_s:
                left -= (now_s - began_s) / version.demand.token_s
            work[delivery.replica.id] = work.get(delivery.replica.id, 0.0) + max(1.0, left)
        return work

    def refuse_waiting(self) -> None:
        """Refuse all requests that wait for a slot or a replica, because the worker ends."""
        error = unavailable("the service is stopping; send the request again", "stopping", 5.0)
        for version in self._table.versions():
            version.concurrency.dismiss(error)

    def sweep(self, now_s: float) -> None:
        """End answers whose replica has gone silent; update queues and capacities."""
        for known in self._table.versions():
            known.resize(self._table.workers)
            known.concurrency.sweep()
        for call, relay, answer in list(self._streams):
            if relay.paused:
                continue
            limits = call.placed.version.limits
            # Before the first token a replica may be computing a long prompt; later it is not.
            limit_s = limits.idle_timeout_s if relay.begun else limits.first_token_timeout_s
            if now_s - call.delivery.last_byte_s > limit_s:
                _interrupt(answer, f"the replica sent nothing for {limit_s:g} s")
        for call, answer in list(self._reads):
            limits = call.placed.version.limits
            limit_s = limits.idle_timeout_s if answer.held_bytes else limits.first_token_timeout_s
            if now_s - answer.received_s > limit_s:
                _interrupt(answer, f"the replica sent nothing for {limit_s:g} s")


def _may_come(version: Version, sends: int, refused_s: float) -> bool:
    """Whether a call that nobody has taken since `refused_s` waits on: others start the servers."""
    if not version.settings.on_demand or sends or not refused_s:
        return False
    return time.perf_counter() - refused_s < find_patience(version)


def _require_listener(call: Call, flight: SingleFlight | None) -> None:
    """Raise `ClientGone` if neither the client nor a follower waits any more."""
    if call.exchange.disconnected and not (flight is not None and flight.followers):
        raise ClientGone


def _do_nothing() -> None:
    pass


def _note_queued(call: Call, began_s: float) -> None:
    """Note the time since `began_s` as spent waiting for a slot or a replica."""
    call.delivery.queue_s += time.perf_counter() - began_s
    if call.trace is not None:
        call.trace.note_wait("queue", began_s)


def assign(call: Call, replica: Replica, flight: SingleFlight | None) -> None:
    """Record which replica works for a call and for the followers of its flight."""
    call.delivery.replica = replica
    if flight is not None:
        flight.replica, flight.version = replica.id, replica.version


def _route(call: Call, version: Version, candidates: list[Replica]) -> Replica:
    """Choose a candidate. With a single candidate the request need not be described."""
    if len(candidates) == 1:
        return candidates[0]
    delivery = call.delivery
    if delivery.routed is UNKNOWN:
        decodes = call.endpoint in STREAMED
        delivery.routed = version.router.describe(call.admitted.body, call.session, decodes=decodes)
    return version.router.choose(candidates, delivery.routed)


def _end_load(load: Outstanding, call: Call, now_s: float, *, streamed: bool) -> None:
    usage = call.outcome.usage
    if usage is None:
        load.end(now_s)
        return
    details = usage.prompt_tokens_details
    load.end(now_s, usage.prompt_tokens, usage.completion_tokens,
             None if details is None else details.cached_tokens, streamed=streamed)  # fmt: skip


def _end_if_late(call: Call, relay: Relay, answer: Answer, flight: SingleFlight | None) -> None:
    """End a stream that has not begun by its deadline, unless followers wait for it."""
    if not relay.begun and not (flight is not None and flight.followers):
        _interrupt(answer, "its deadline passed before the first token")


def _interrupt(answer: Answer, why: str) -> None:
    answer.fail(BrokenResponse(why))
    answer.abort()
