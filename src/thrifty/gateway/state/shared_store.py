"""The Redis or Valkey that gateway workers share, where the spec names one (`redis:`).

It owns the connection, its timeouts and its circuit; what is kept there is its users' business
(limits of keys, the second tier of the cache). The promise to them: `run` answers within about
twice `timeout_s`, and `None` means "nothing there, or Redis is away: do without it". It never
raises for a Redis that is away, slow, full or read-only.

    store = SharedStore(url, on_state=lambda up: metrics.shared_store_up.set(up))
    await store.start()
    value = await store.run("GET", b"cache:" + key)
    await store.run("SET", b"cache:" + key, data, "PX", 60_000)
    found = await store.run_script(SCRIPT, [b"key"], [1, 2])
    await store.close()

Commands that are asked for while others are under way go out together, as one pipeline, so that a
command costs a fraction of a round trip under load and there are never more than `LANES`
connections.

The circuit: a connection that fails, or `TIMEOUTS_TO_OPEN` pipelines in a row that are late, make
the store unavailable at once: `run` then returns None without waiting. One task goes on asking, and
makes it available again when two answers in a row come in time. No request pays for that.

One node of a cluster has some of the keys alone, and half of what is shared would be shared. That is
found out by asking for many keys before the store is used, and by what is refused later: the log says
it loudly, and the store counts as away.
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
"""A round trip to a Redis in the same house is well under a millisecond."""
CONNECT_TIMEOUT_S = 1.0
STALL_S = 0.005
"""A timer that fires so late says that this process was held up."""
MAX_STALLS = 3
LANES = 4
BATCH = 256
MAX_WAITING = 8192
"""More commands than this at once are not sent: their users do without."""
TIMEOUTS_TO_OPEN = 2
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)
PROBES = 256
"""Keys that are asked for before the store is used: a node of a cluster that has no more than 95 % of
them to itself is found out."""
_REDIRECTS = {
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
}
"""What a node of a cluster says about keys that are not its own, by the client's exception. CROSSSLOT
is not among them: the keys of each of our scripts have one hash tag."""


@dataclass(frozen=True)
class Script:
    """A Lua script, which Redis runs as one step. It must name all its keys in KEYS."""

    text: str

    @property
    def sha(self) -> str:
        """The name by which Redis knows it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class SharedStore:
    """One worker's way to the shared Redis. Used on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        on_state: Callable[[bool], None] = lambda up: None,
        on_error: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`on_state` is told when the store comes (True) and goes (False), `on_error` the kind of
        each fault: `timeout`, `connection` or `reply`. Raises `ThriftyError` where the `redis`
        package is missing or the URL is not one.
        """
        self.safe_url = mask_url(url)
        self._redis = _connect(url)
        self._timeout_s = timeout_s
        self._on_state = on_state
        self._on_error = on_error
        self._available = False
        self._waiting: deque[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._late = 0
        self._reply_faults: set[str] = set()
        self._redirected: Argument | None = None
        """A key that another node has, as was found out in use."""
        self._cluster_told = False
        self._shas: dict[Script, str] = {}
        self._away = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether it is worth asking now."""
        return self._available

    async def start(self) -> None:
        """Connect; returns after the first try, with whatever came of it."""
        fault = await self._ask()
        self._note_state(fault is None, fault)
        if fault is not None:
            self._away.set()
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """End the connections and everything that waits."""
        self._available = False
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._lanes:
            await asyncio.wait(set(self._lanes))
        await self._redis.aclose()

    async def run(self, *command: Argument) -> Any:
        """One command's answer; None where it has none, was refused, or the store is away."""
        answer = await self._submit(command)
        return None if isinstance(answer, Exception) else answer

    async def run_script(
        self, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument]
    ) -> Any:
        """What a script returned; None as for `run`."""
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
        if len(self._lanes) < LANES:
            lane = asyncio.ensure_future(self._flush())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await future

    async def _flush(self) -> None:
        """Send what waits, batch by batch, until nothing does."""
        while self._waiting:
            count = min(BATCH, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            answers = None
            try:
                answers = await self._send([command for command, _ in batch])
            except Exception:
                log.exception("the shared store's client failed")
            for index, (command, future) in enumerate(batch):
                if future.done():
                    continue  # whoever asked has gone
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
                self._away.set()
            return None
        self._late = 0
        return answers

    async def _in_time(self, asked: Awaitable[Any], timeout_s: float) -> Any:
        """The result of `asked`, if it comes in time; else `TimeoutError`. Time in which this process
        did not get to run is not Redis', so it is given once more.
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
                # Its connection is cut, so that a late answer is never taken for another's.
                await asyncio.wait({task})

    async def _keep(self) -> None:
        """While the store is away, ask until it is back."""
        while True:
            await self._away.wait()
            failures = 0
            while True:
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                if await self._ask() is None:
                    break
                failures += 1
            self._away.clear()
            self._late = 0
            self._note_state(True, None)

    async def _ask(self) -> str | None:
        """What is wrong with the store; None where it answers in time."""
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
        """Make every connection that may be used, so that no request waits for one to be made.
        Returns what says that the store is not for us.
        """
        await asyncio.gather(*(self._redis.ping() for _ in range(LANES)))
        return await self._find_redirect()

    async def _find_redirect(self) -> str | None:
        """What is said of a key that is not this server's; None where it serves every key."""
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
            log.info("the shared store %s answers", self.safe_url)
            self._cluster_told = False
        elif not up:
            log.warning(
                "the shared store %s is away (%s); this worker goes on by itself",
                self.safe_url, fault,
            )  # fmt: skip
        self._available = up
        self._on_state(up)

    def _note_cluster(self, redirect: str) -> str:
        """Say loudly what is wrong; returns it in short."""
        if not self._cluster_told:
            self._cluster_told = True
            log.error(
                "the shared store %s is one node of a cluster and does not have every key (%s); the URL "
                "must be of a single Redis or Valkey, or a proxy",
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
                self._away.set()
            return
        # Each kind of fault is told once: a full Redis refuses every write.
        kind = f"{command[0]!s} {str(error)[:24]}"
        if kind not in self._reply_faults and len(self._reply_faults) < 100:
            self._reply_faults.add(kind)
            log.warning("the shared store refused %s: %s", command[0], error)


def mask_url(url: str) -> str:
    """The URL without user, password and options, for logs."""
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
            # Deadlines are ours, and what failed is not repeated: a count must not go in twice.
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            max_connections=LANES + 2,
            decode_responses=False,
        )
    except ValueError as error:
        raise ThriftyError(f"the URL of the shared store is not valid: {error}") from None


def _is_unknown_script(answer: Any) -> bool:
    return isinstance(answer, Exception) and type(answer).__name__ == "NoScriptError"


def _describe_redirect(answer: Any) -> str | None:
    """What a node of a cluster says of a key that is not its own; None for every other answer."""
    word = _REDIRECTS.get(type(answer).__name__)
    return None if word is None else f"{word} {answer}"


def _describe(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
