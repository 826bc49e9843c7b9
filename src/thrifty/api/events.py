"""`GET /api/v1/events`: changes of the status, and figures each second, as server-sent events.

One task reads the database once a second for all readers, and ends with the last of them. A reader
that is slow gets the newest state when it reads again: nothing is queued for it. A stream ends after
`MAX_STREAM_S`, and browsers connect anew, which checks the key anew.

    event: status    the body of `GET /api/v1/status`, at first and when it has changed
    event: figures   `at`, `versions` with rates and counts, `replicas` with their load
    event: away      the database cannot be read; the last state stays
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from thrifty.api.services import ApiServices
from thrifty.api.view_models import Live, LiveCount
from thrifty.errors import ThriftyError
from thrifty.openai.errors import unavailable

log = logging.getLogger(__name__)

POLL_S = 1.0
MAX_READERS = 100
MAX_STREAM_S = 600.0
RETRY = b"retry: 2000\n\n"
"""How long browsers wait before they connect again, in milliseconds."""
_RATES = ("arrivals", "answered", "output_tokens")
_COUNTS = ("held", "queued", "in_flight")


class EventHub:
    """Reads what goes on for all readers. Used on the event loop."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services
        self._readers = 0
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Condition()
        self._turns = 0
        self._status: tuple[int, bytes] = (0, b"")
        self._figures: bytes = b""
        self._away = False
        self._known = b""
        self._before: Live | None = None

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return self._readers

    async def stream(self) -> AsyncIterator[bytes]:
        """The events for one reader. Raises a 503 where there are too many."""
        if self._readers >= MAX_READERS:
            raise unavailable(
                f"{MAX_READERS} readers follow the events already", "too_many_readers"
            )
        self._readers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield RETRY
            seen_turn, seen_status = 0, 0
            until_s = time.monotonic() + MAX_STREAM_S
            while time.monotonic() < until_s:
                async with self._turn:
                    while self._turns == seen_turn:
                        await self._turn.wait()
                seen_turn = self._turns
                number, status = self._status
                if number > seen_status:
                    seen_status = number
                    yield _write("status", status)
                yield _write("away", b"{}") if self._away else _write("figures", self._figures)
        finally:
            self._readers -= 1
            if self._readers == 0 and self._task is not None:
                self._task.cancel()
                self._task = None
                # The next reader begins with what is true then.
                self._turns, self._status, self._known = 0, (0, b""), b""
                self._before = None

    async def _run(self) -> None:
        while True:
            try:
                await self._read()
                self._away = False
            except ThriftyError:
                self._away = True
            except Exception:
                log.exception("the state of the service could not be read for the console")
                self._away = True
            async with self._turn:
                self._turns += 1
                self._turn.notify_all()
            await asyncio.sleep(POLL_S)

    async def _read(self) -> None:
        status, live = await asyncio.to_thread(
            lambda: (self._services.get_status(), self._services.views.get_live())
        )
        body = status.model_dump(mode="json")
        encoded = json.dumps(body, separators=(",", ":")).encode()
        for deployment in body["deployments"]:
            for replica in deployment["replicas"]:
                replica["memory_bytes"] = None  # it changes all the time, and is in the figures
        known = json.dumps(body).encode()
        if known != self._known:
            self._known = known
            self._status = (self._status[0] + 1, encoded)
        self._figures = json.dumps(make_figures(self._before, live), separators=(",", ":")).encode()
        self._before = live


def make_figures(before: Live | None, now: Live) -> dict[str, Any]:
    """Rates since `before` and counts now, by version, over all gateway workers."""
    elapsed_s = now.at - before.at if before is not None else 0.0
    known = {_name(one): one for one in before.counts} if before is not None else {}
    versions: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys((*(f"{name}_per_s" for name in _RATES), *_COUNTS), 0.0)
    )
    for one in now.counts:
        into = versions[one.deployment, one.version]
        for name in _COUNTS:
            into[name] += getattr(one, name)
        last = known.get(_name(one))
        if last is not None and elapsed_s > 0:
            for name in _RATES:
                grown = max(0, getattr(one, name) - getattr(last, name))
                into[f"{name}_per_s"] += grown / elapsed_s
    return {
        "at": now.at,
        "versions": [
            {"deployment": deployment, "version": label, **figures}
            for (deployment, label), figures in sorted(versions.items())
        ],
        "replicas": [one.model_dump() for one in now.replicas],
    }


def _name(count: LiveCount) -> tuple[Any, ...]:
    """A count that begins anew is another one."""
    return (count.worker, count.deployment, count.version, count.since_s)


def _write(event: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


async def follow_events(request: Request) -> StreamingResponse:
    """The events."""
    hub: EventHub = request.app.state.events
    events = hub.stream()
    # Before the head is sent, so that a refusal has its status.
    first = await anext(events)

    async def send() -> AsyncIterator[bytes]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(send(), media_type="text/event-stream", headers=headers)
