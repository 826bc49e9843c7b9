"""Sends lines to replicas, and requeues them if they must yield to interactive requests.

Lines are sent as far as the governor allows, one of each batch in turn. When an interactive request
is sent to a replica, lines beyond the replica's new limit are withdrawn in the same turn of the
event loop, the youngest first, because they lose least. They are sent again later. An engine with
request priorities keeps its running lines until interactive requests occupy all of its slots.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from thrifty.batches.governor import GovernorSettings, LineLimit
from thrifty.batches.lines import Line
from thrifty.db.keys import Key
from thrifty.gateway.forwarding.forward import Forwarder
from thrifty.gateway.state.call import BATCH, INTERACTIVE, Call, Origin
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.http.exchange import InnerExchange
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.conversations import Conversations
from thrifty.openai.fields import Endpoint

log = logging.getLogger(__name__)

TICK_S = 0.05
"""Interval at which slots are checked without any event."""
FILL_S = 0.002
"""Slots that become free within this time are filled together."""

Run = Callable[[Call], Coroutine[Any, Any, None]]
VersionName = tuple[str, str]
"""A deployment and the label of a version; both empty if no deployment has the model."""
_NO_VERSION = ("", "")


@dataclass(frozen=True)
class Outcome:
    """The result of one attempt at a line. `status` is 0 if it was withdrawn."""

    status: int
    body: bytes = b""
    request_id: str = ""
    error: str | None = None
    retry_after_s: float | None = None


class LineSource(Protocol):
    """A source of lines: a batch."""

    endpoint: Endpoint
    key: Key | None

    def peek(self) -> Line | None:
        """The next line, if one is ready."""
        ...

    def take(self) -> tuple[Line, str]:
        """Remove that line from the source; returns it with the id for this attempt."""
        ...

    def note(self, line: Line, outcome: Outcome) -> None:
        """Report the end of an attempt."""
        ...


class _Attempt:
    """One line in flight."""

    __slots__ = ("exchange", "line", "replica", "source", "version", "withdrawn")

    def __init__(
        self, source: LineSource, line: Line, exchange: InnerExchange, version: VersionName
    ) -> None:
        self.source = source
        self.line = line
        self.exchange = exchange
        self.version = version
        self.replica: str | None = None
        self.withdrawn = False


class Dispatcher:
    """Sends the lines of all batches that this worker runs. Used on the event loop only."""

    def __init__(
        self,
        run: Run,
        table: RoutingTable,
        forwarder: Forwarder,
        metrics: GatewayMetrics,
        settings: GovernorSettings,
        conversations: Conversations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._table = table
        self._forwarder = forwarder
        self._metrics = metrics
        self._settings = settings
        self._conversations = conversations
        self._clock = clock
        self._sources: list[LineSource] = []
        self._attempts: dict[Call, _Attempt] = {}
        self._placed: dict[str, list[_Attempt]] = {}
        """Attempts by replica, oldest first."""
        self._unplaced: Counter[VersionName] = Counter()
        """Attempts without a replica yet, by version."""
        self._identified: dict[LineSource, tuple[Line, str]] = {}
        """The line that each source tells next, and the conversation that it starts."""
        self._limits: dict[str, LineLimit] = {}
        self._fill_due = False
        self.other_workers: dict[str, int] = {}
        """Requests that other gateway workers sent, by replica."""

    def add(self, source: LineSource) -> None:
        """Start sending a batch's lines."""
        self._sources.append(source)
        self._forwarder.on_chosen = self.note_chosen
        self.schedule()

    def find_busy_replicas(self) -> list[Replica]:
        """The replicas that have lines in flight."""
        return [
            replica
            for version in self._table.versions()
            for replica in version.replicas.values()
            if replica.id in self._placed
        ]

    def remove(self, source: LineSource) -> None:
        """Stop sending a batch's lines and withdraw those in flight; each is still reported."""
        if source in self._sources:
            self._sources.remove(source)
        self._identified.pop(source, None)
        for attempt in list(self._attempts.values()):
            if attempt.source is source:
                self._withdraw(attempt)

    def note_chosen(self, call: Call, replica: Replica) -> None:
        """Handle the choice of a replica for a call: count a line, or make room for a request."""
        attempt = self._attempts.get(call)
        if attempt is None:
            self._make_room(replica)
            return
        self._uncount(attempt)
        attempt.replica = replica.id
        self._placed.setdefault(replica.id, []).append(attempt)

    def schedule(self) -> None:
        """Fill free slots soon."""
        if not self._fill_due:
            self._fill_due = True
            asyncio.get_running_loop().call_later(FILL_S, self._fill)

    def tick(self) -> None:
        """Check every replica with lines, and fill free slots."""
        if not self._sources and not self._attempts:
            self._forwarder.on_chosen = None
            return
        for version in self._table.versions():
            for replica in version.replicas.values():
                if replica.id in self._placed:
                    self._make_room(replica)
        self.schedule()

    def count_lines(self) -> dict[str, int]:
        """Lines in flight, by deployment."""
        counts = dict.fromkeys(self._table.deployments, 0)
        for attempt in self._attempts.values():
            counts[attempt.version[0]] = counts.get(attempt.version[0], 0) + 1
        return counts

    # slots

    def _find_limit(self, version: Version, replica: Replica) -> int:
        """How many lines may be in flight at a replica now."""
        limit = self._limits.get(replica.id)
        if limit is None:
            limit = self._limits[replica.id] = LineLimit()
        lines = len(self._placed.get(replica.id, ()))
        others = max(0, replica.in_flight - lines) + self.other_workers.get(replica.id, 0)
        queued = version.waiting + version.concurrency.queue.waiting(INTERACTIVE)
        waiting = queued / max(1, len(version.replicas))
        return limit.update(
            slots=version.settings.batch_slots if replica.ready else 0,
            interactive=others + waiting,
            settings=self._settings,
            now_s=self._clock(),
        )

    def _make_room(self, replica: Replica) -> None:
        """Withdraw lines beyond the replica's limit."""
        placed = self._placed.get(replica.id, ())
        version = self._table.find_version(replica.deployment, replica.version)
        if not self._sources or version is None:
            return
        allowed = self._find_limit(version, replica)
        if allowed > 0 and version.settings.priority_field is not None:
            # The engine schedules lines by priority: running ones end sooner than they could be
            # repeated, and no new ones are sent.
            return
        excess = sum(1 for a in placed if not a.withdrawn) - allowed
        if excess <= 0:
            return
        for attempt in list(reversed(placed)):
            if excess > 0 and not attempt.withdrawn:
                self._withdraw(attempt)
                excess -= 1

    def _find_room(self, version: Version) -> tuple[int, frozenset[str]]:
        """How many more lines may be sent to a version, and its replicas without room."""
        room = -self._unplaced[version.deployment, version.label]
        if version.asleep:
            return room + 1, frozenset()  # the one line that waits for it wakes it
        full = []
        healthy = version.candidates(set())
        for replica in version.replicas.values():
            allowed = self._find_limit(version, replica)
            there = sum(1 for a in self._placed.get(replica.id, ()) if not a.withdrawn)
            free = allowed - there
            if free <= 0 or replica not in healthy:
                full.append(replica.id)
            else:
                room += free
        return room, frozenset(full)

    # lines

    def _fill(self) -> None:
        self._fill_due = False
        rooms: dict[VersionName, tuple[int, frozenset[str]]] = {}
        moved = True
        while moved:
            moved = False
            for source in list(self._sources):
                line = source.peek()
                if line is None:
                    continue
                try:
                    version = self._find_version(source, line)
                except Exception:
                    # Whatever is wrong with a line, others go on.
                    log.exception("line %d of a batch has no version", line.number)
                    version = None
                if version is None:
                    # No deployment has this model; `admit` reports the error.
                    self._send(source, _NO_VERSION, frozenset())
                    moved = True
                    continue
                name = (version.deployment, version.label)
                if name not in rooms:
                    rooms[name] = self._find_room(version)
                room, full = rooms[name]
                if room > 0:
                    rooms[name] = (room - 1, full)
                    self._send(source, name, full)
                    moved = True
        # The next call starts with the next batch.
        self._sources = self._sources[1:] + self._sources[:1]

    def _find_version(self, source: LineSource, line: Line) -> Version | None:
        """The version that will answer a line, from the conversation that the line starts. None if
        no deployment has the line's model.
        """
        deployment = self._table.names.get(line.model) if line.model else None
        if deployment is None or deployment.only is not None:
            return None if deployment is None else deployment.only
        known = self._identified.get(source)
        if known is None or known[0] is not line:
            tenant = source.key.tenant if source.key is not None else ""
            body = msgspec.json.decode(line.body)
            found = self._conversations.identify(tenant, None, source.endpoint, body)
            known = self._identified[source] = (line, found)
        return deployment.find_answering(known[1])[1]

    def _send(self, source: LineSource, version: VersionName, full: frozenset[str]) -> None:
        line, request_id = source.take()
        headers = {b"x-request-id": request_id.encode()}
        exchange = InnerExchange(source.endpoint.value, line.body, headers)
        call = Call(exchange, source.endpoint, Origin.BATCH)
        call.priority = BATCH
        call.key = source.key
        call.avoid = full
        attempt = _Attempt(source, line, exchange, version)
        self._attempts[call] = attempt
        self._unplaced[version] += 1
        task = asyncio.get_running_loop().create_task(self._run(call))
        exchange.task = task
        task.add_done_callback(functools.partial(self._end, call))

    def _withdraw(self, attempt: _Attempt) -> None:
        attempt.withdrawn = True
        attempt.exchange.hang_up()

    def _uncount(self, attempt: _Attempt) -> None:
        """Remove an attempt from the counts."""
        if attempt.replica is None:
            self._unplaced[attempt.version] -= 1
            return
        placed = self._placed[attempt.replica]
        placed.remove(attempt)
        if not placed:
            del self._placed[attempt.replica]

    def _end(self, call: Call, task: asyncio.Task[None]) -> None:
        attempt = self._attempts.pop(call)
        self._uncount(attempt)
        exchange = attempt.exchange
        outcome = Outcome(0)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", call.response_id.text, exc_info=error, extra=call.log_ids)
            body = b'{"error":{"message":"the gateway failed"}}'
            outcome = Outcome(500, body, call.client_request_id or "")
        elif exchange.finished:
            outcome = Outcome(
                exchange.status,
                exchange.answer,
                call.client_request_id or "",
                call.outcome.error,
                _read_retry_after(exchange.answer_headers),
            )
        attempt.source.note(attempt.line, outcome)
        result = "withdrawn" if outcome.status == 0 else str(outcome.status)
        self._metrics.batch_lines.labels(attempt.version[0], result).inc()
        if self._sources:
            self.schedule()


def _read_retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name == b"retry-after" and value.isdigit():
            return float(value)
    return None
