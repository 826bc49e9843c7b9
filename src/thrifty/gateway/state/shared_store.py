"""The Redis or Valkey that gateway workers share, if the spec names one (`redis:`).

This module owns the connection, its timeouts and its circuit breaker. Its users (key limits, the
second tier of the cache) decide what to store. `run` answers within about twice `timeout_s`; `None`
means "no value, or Redis is unavailable". It never raises if Redis is unavailable, slow, full or
read-only.

    store = SharedStore(url, on_state=lambda up: metrics.shared_store_up.set(up))
    await store.start()
    value = await store.run("GET", b"cache:" + key)
    await store.run("SET", b"cache:" + key, data, "PX", 60_000)
    found = await store.run_script(SCRIPT, [b"key"], [1, 2])
    await store.close()

Commands that arrive while others are in progress are sent together as one pipeline. Under load a
command costs a fraction of a round trip, and there are never more than `MAX_CONNECTIONS`
connections.

The circuit breaker: a failed connection, or `TIMEOUTS_TO_OPEN` late pipelines in a row, makes the
store unavailable at once, and `run` returns None without waiting. One task keeps probing and makes
the store available again after two timely answers in a row. Requests never pay for the probes.

A single node of a cluster holds only some of the keys, so only part of the state would be shared.
The store detects this by probing many keys before it is used, and later by the errors it gets. It
then logs an error and counts as unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

Argument = str | bytes | int | float

TIMEOUT_S = 0.05
"""A round trip to a Redis in the same data centre takes well under a millisecond."""
CONNECT_TIMEOUT_S = 1.0
STALL_S = 0.005
"""A timer that fires this late means that this process was stalled."""
MAX_STALLS = 3
MAX_CONNECTIONS = 4
MAX_PIPELINE = 256
MAX_WAITING = 8192
"""Further commands are not sent: their callers get None."""
TIMEOUTS_TO_OPEN = 2
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
PROBES = 256
"""Keys probed before the store is used. A cluster node that holds at most 95 % of them is
detected."""
_REDIRECTS = {
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
}
"""Errors of a cluster node for keys it does not hold, by the client's exception. CROSSSLOT is not
among them, because all keys of each of our scripts have the same hash tag."""


@dataclass(frozen=True)
class Script:
    """A Lua script, which Redis runs atomically. It must name all its keys in KEYS."""

    text: str

    @property
    def sha(self) -> str:
        """The SHA-1 by which Redis identifies it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class SharedStore:
    """One worker's client of the shared Redis. Used on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        on_state: Callable[[bool], None] = lambda up: None,
        on_error: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`on_state` is called when the store becomes available (True) or unavailable (False),
        `on_error` with the kind of each fault: `timeout`, `connection` or `reply`. Raises
        `ThriftyError` if the `redis` package is missing or the URL is not valid.
        """
        self.safe_url = mask_url(url)
        self._redis = _connect(url)
        self._timeout_s = timeout_s
        self._on_state = on_state
        self._on_error = on_error
        self._available = False
        self._waiting: deque[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = deque()
        self._flushes: set[asyncio.Task[None]] = set()
        self._late = 0
        self._reply_faults: set[str] = set()
        self._redirected: Argument | None = None
        """A key that another node holds, found in use."""
        self._cluster_logged = False
        self._shas: dict[Script, str] = {}
        self._unavailable = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether the store is available."""
        return self._available

    async def start(self) -> None:
        """Connect; returns after the first attempt, successful or not."""
        fault = await self._probe()
        self._note_state(fault is None, fault)
        if fault is not None:
            self._unavailable.set()
        self._prober = asyncio.ensure_future(self._keep_probing())

    async def close(self) -> None:
        """Close the connections after the commands in progress have ended."""
        self._available = False
        if self._prober is not None:
            self._prober.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._prober
        if self._flushes:
            await asyncio.wait(set(self._flushes))
        await self._redis.aclose()

    async def run(self, *command: Argument) -> Any:
        """Run one command; None if it has no value, was refused, or the store is unavailable."""
        answer = await self._submit(command)
        return None if isinstance(answer, Exception) else answer

    async def run_script(
        self, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument]
    ) -> Any:
        """Run a script; returns None as `run` does."""
        sha = self._shas.get(script)
        if sha is None:
            sha = self._shas[script] = script.sha
        answer = await self._submit(("EVALSHA", sha, len(keys), *keys, *arguments))
        if _is_unknown_script(answer):
            answer = await self._submit(("EVAL", script.text, len(keys), *keys, *arguments))
        return None if isinstance(answer, Exception) else answer

    async def _submit(self, command: tuple[Argument, ...]) -> Any:
        if not self._available or len(self._waiting) >= MAX_WAITING:
            return None
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if len(self._flushes) < MAX_CONNECTIONS:
            flush = asyncio.ensure_future(self._flush())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
        return await future

    async def _flush(self) -> None:
        """Send waiting commands, one batch at a time, until there are none."""
        while self._waiting:
            count = min(MAX_PIPELINE, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            answers = None
            try:
                answers = await self._send([command for command, _ in batch])
            except Exception:
                log.exception("the shared store's client failed")
            for index, (command, future) in enumerate(batch):
                if future.done():
                    continue  # the caller has gone
                answer = answers[index] if answers is not None else None
                if isinstance(answer, Exception) and not _is_unknown_script(answer):
                    self._note_reply_fault(command, answer)
                future.set_result(answer)

    async def _send(self, commands: list[tuple[Argument, ...]]) -> list[Any] | None:
        from redis.exceptions import RedisError

        if not self._available:
            return None
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        try:
            answers: list[Any] = await self._in_time(
                pipe.execute(raise_on_error=False), self._timeout_s
            )
        except (TimeoutError, RedisError, OSError) as error:
            if isinstance(error, TimeoutError):
                self._late += 1
                self._on_error("timeout")
                if self._late < TIMEOUTS_TO_OPEN:
                    return None
            else:
                self._on_error("connection")
            if self._available:
                self._note_state(False, _describe(error))
                self._unavailable.set()
            return None
        self._late = 0
        return answers

    async def _in_time(self, asked: Awaitable[Any], timeout_s: float) -> Any:
        """The result of `asked`, or `TimeoutError`. Time during which this process was stalled is
        not Redis's, so the wait is repeated.
        """
        task = asyncio.ensure_future(asked)
        try:
            for _ in range(MAX_STALLS):
                began_s = time.monotonic()
                await asyncio.wait({task}, timeout=timeout_s)
                stalled_s = time.monotonic() - began_s - timeout_s
                if task.done() or stalled_s < STALL_S:
                    break
            if task.done():
                return task.result()
            raise TimeoutError(f"no answer within {timeout_s * 1e3:.0f} ms")
        finally:
            if not task.done():
                task.cancel()
                # Cancelling closes the connection, so a late reply cannot reach another caller.
                await asyncio.wait({task})

    async def _keep_probing(self) -> None:
        """While the store is unavailable, probe it until it is back."""
        while True:
            await self._unavailable.wait()
            failures = 0
            while True:
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                if await self._probe() is None:
                    break
                failures += 1
            self._unavailable.clear()
            self._late = 0
            self._note_state(True, None)

    async def _probe(self) -> str | None:
        """Probe the store; returns what is wrong, or None if it answers in time."""
        from redis.exceptions import RedisError

        try:
            redirect = await self._in_time(self._connect_all(), CONNECT_TIMEOUT_S)
            if redirect is not None:
                return self._note_cluster(redirect)
            await self._in_time(self._redis.ping(), self._timeout_s)
        except (TimeoutError, RedisError, OSError) as error:
            return _describe(error)
        return None

    async def _connect_all(self) -> str | None:
        """Open all connections, so that no request waits for one. Returns the redirect of a
        cluster node, or None.
        """
        await asyncio.gather(*(self._redis.ping() for _ in range(MAX_CONNECTIONS)))
        return await self._find_redirect()

    async def _find_redirect(self) -> str | None:
        """The redirect for a key that this server does not hold; None if it serves every key."""
        names: list[Argument] = [f"thrifty:probe:{number}" for number in range(PROBES)]
        if self._redirected is not None:
            names.append(self._redirected)
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.execute_command("EXISTS", name)
        answers = await pipe.execute(raise_on_error=False)
        return next(filter(None, map(_describe_redirect, answers)), None)

    def _note_state(self, up: bool, fault: str | None) -> None:
        if up and not self._available:
            log.info("the shared store %s is available", self.safe_url)
            self._cluster_logged = False
        elif not up:
            log.warning(
                "the shared store %s is unavailable (%s); this worker continues without it",
                self.safe_url, fault,
            )  # fmt: skip
        self._available = up
        self._on_state(up)

    def _note_cluster(self, redirect: str) -> str:
        """Log the cluster error once; returns a short description."""
        if not self._cluster_logged:
            self._cluster_logged = True
            log.error(
                "the shared store %s is one node of a cluster and does not hold every key (%s); the "
                "URL must be of a single Redis or Valkey, or of a proxy",
                self.safe_url, redirect,
            )  # fmt: skip
        return f"it is one node of a cluster: {redirect}"

    def _note_reply_fault(self, command: tuple[Argument, ...], error: Exception) -> None:
        self._on_error("reply")
        redirect = _describe_redirect(error)
        if redirect is not None:
            self._redirected = command[3 if command[0] in ("EVAL", "EVALSHA") else 1]
            fault = self._note_cluster(redirect)
            if self._available:
                self._note_state(False, fault)
                self._unavailable.set()
            return
        # Each kind of error is logged once: a full Redis refuses every write.
        kind = f"{command[0]!s} {str(error)[:24]}"
        if kind not in self._reply_faults and len(self._reply_faults) < 100:
            self._reply_faults.add(kind)
            log.warning("the shared store refused %s: %s", command[0], error)


def mask_url(url: str) -> str:
    """The URL without user, password and query, for logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _connect(url: str) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ThriftyError(
            "a shared Redis needs its client: pip install 'thrifty[redis]'"
        ) from None
    try:
        return Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            # We set deadlines, and failed commands are not retried: a count must not go in twice.
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            max_connections=MAX_CONNECTIONS + 2,
            decode_responses=False,
        )
    except ValueError as error:
        raise ThriftyError(f"the URL of the shared store is not valid: {error}") from None


def _is_unknown_script(answer: Any) -> bool:
    return isinstance(answer, Exception) and type(answer).__name__ == "NoScriptError"


def _describe_redirect(answer: Any) -> str | None:
    """The redirect error of a cluster node as text; None for every other reply."""
    word = _REDIRECTS.get(type(answer).__name__)
    return None if word is None else f"{word} {answer}"


def _describe(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
