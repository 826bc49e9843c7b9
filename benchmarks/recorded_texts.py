"""What redacted texts that are kept, and encrypted, cost requests: latencies at 1,000 requests/s.

    python benchmarks/recorded_texts.py [--rate 1000]

Three services with one gateway worker each: the request log without texts, with redacted texts, and
with redacted texts that are encrypted. nginx stands in for the model and answers at once. A client
sends at a fixed rate, whatever the answers do, and measures each request from the moment when it was
due. Questions are 600 characters with a name, a mail address, a card and a phone number in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from common import (
    WORK,
    ThriftyService,
    finish,
    free_port,
    in_turns,
    nginx,
    parse_arguments,
    ratio_figure,
    say,
    show_spread,
)
from gateway_overhead import ANSWER

NAMES = ("rows", "texts", "sealed")
CONNECTIONS = 64
PERSONAL = (
    "My name is Ann Example, write to ann.example+{n}@example.com or call +32 470 12 34 56. "
    "The card is 4111 1111 1111 1111, the server 192.0.2.17. "
)
WARM_S = 1.0


# The client, in a process of its own


def make_request(host: str, key: str, number: int) -> bytes:
    """One request as bytes; no two are the same."""
    filler = (
        f"Question {number}. " + "Please tell me what to do about the order from last week. " * 7
    )
    body = json.dumps(
        {
            "model": "smol", "max_tokens": 64, "user": f"u{number % 200}",
            "messages": [{"role": "user", "content": PERSONAL.format(n=number) + filler}],
        }
    ).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """A connection with one request under way at a time."""

    def __init__(self, free: asyncio.Queue[Connection]) -> None:
        self._free = free
        self._buffer = b""
        self._whole = 0
        self.done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._free.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._whole:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = self._buffer.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            self._whole = end + 4 + int(length)
        if len(self._buffer) >= self._whole:
            status, self._buffer, self._whole = self._buffer[9:12], b"", 0
            assert self.done is not None
            self.done.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(b"lost")


async def send_steadily(
    url: str, key: str, rate: float, seconds: float, salt: int
) -> dict[str, Any]:
    """Send at `rate` for `seconds`; latencies in milliseconds from the time when each was due."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Connection(free), parts.hostname, parts.port)
    latencies: list[float] = []
    faults: list[str] = []
    host = parts.netloc

    async def ask(number: int, due_s: float) -> None:
        connection = await free.get()
        connection.done = loop.create_future()
        connection.transport.write(make_request(host, key, salt + number))
        status = await connection.done
        if status != b"200":
            faults.append(status.decode())
        elif number >= rate * WARM_S:
            latencies.append((time.perf_counter() - due_s) * 1000)
        free.put_nowait(connection)

    begun_s, tasks = time.perf_counter(), set()
    for number in range(int(rate * (seconds + WARM_S))):
        due_s = begun_s + number / rate
        wait_s = due_s - time.perf_counter()
        if wait_s > 0.0005:
            await asyncio.sleep(wait_s)
        task = asyncio.ensure_future(ask(number, due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    took_s = time.perf_counter() - begun_s
    latencies.sort()
    return {
        "sent_per_s": rate * (seconds + WARM_S) / took_s, "count": len(latencies), "faults": faults[:5],
        "p50_ms": latencies[len(latencies) // 2], "p99_ms": latencies[int(len(latencies) * 0.99)],
    }  # fmt: skip


# The measurement


def start(name: str, upstream: str, record: dict[str, Any]) -> tuple[ThriftyService, str]:
    """A service with a key, and the key."""
    service = ThriftyService(
        f"recorded {name}",
        {"model": "smol", "engine": {"kind": "remote", "urls": [f"{upstream}/v1"]},
         "gateway": {"port": free_port()}, "record": record},
        fresh=True,
    )  # fmt: skip
    made = service.run("keys", "create", "--name", "user", "--role", "user")
    return service, made.strip().splitlines()[-1]


@contextlib.contextmanager
def running(upstream: str) -> Iterator[dict[str, tuple[ThriftyService, str]]]:
    """The three services."""
    keys = WORK / "text-keys"
    keys.unlink(missing_ok=True)
    subprocess.run(
        ThriftyService.command("encryption", "new-key", "--file", str(keys)),
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    texts = {"prompts": True}
    records: dict[str, dict[str, Any]] = {
        "rows": {}, "texts": texts, "sealed": {**texts, "encrypt": {"keys_file": str(keys)}},
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        made = {}
        for name in NAMES:
            made[name] = start(name, upstream, records[name])
            stack.callback(made[name][0].stop)
        yield made


def count_texts(service: ThriftyService, key_of: str) -> int:
    """How many texts were recorded: plain ones, or those of a key."""
    found = json.loads(service.run("encryption", "status", "--json"))
    return int(
        found["plain_texts"] if key_of == "plain" else sum(k["texts"] for k in found["keys"])
    )


def main() -> None:
    options = parse_arguments(
        __doc__ or "", 8, rate=(float, 1000.0, "Requests a second."),
        client=(str, "", "Used by itself: URL, key and salt of one turn."),
    )  # fmt: skip
    if options.client:
        url, key, salt = options.client.split()
        import uvloop

        found = uvloop.run(send_steadily(url, key, options.rate, options.seconds, int(salt)))
        print(json.dumps(found))
        return
    with nginx(ANSWER) as upstream, running(upstream) as services:
        salt = 0

        def turn(name: str):  # type: ignore[no-untyped-def]
            def measure() -> dict[str, Any]:
                nonlocal salt
                for other, (service, _) in services.items():
                    (service.wake if other == name else service.sleep)()
                service, key = services[name]
                salt += 1_000_000
                done = subprocess.run(
                    [sys.executable, __file__, "--client", f"{service.url} {key} {salt}",
                     "--rate", str(options.rate), "--seconds", str(options.seconds)],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                found: dict[str, Any] = json.loads(done.stdout)
                if found["faults"]:
                    raise SystemExit(f"{name}: {found['faults']}")
                return found

            return measure

        results = in_turns(options.rounds, {name: turn(name) for name in NAMES})
        for service, _ in services.values():
            service.wake()
        time.sleep(3)
        kept = {
            "texts": count_texts(services["texts"][0], "plain"),
            "sealed": count_texts(services["sealed"][0], "sealed"),
        }
        assert count_texts(services["sealed"][0], "plain") == 0, "a text was written plain"
    say(f"texts kept: {kept}")
    p99 = {name: [one["p99_ms"] for one in found] for name, found in results.items()}
    ratios = {
        name: [a / b for a, b in zip(p99[name], p99["rows"], strict=True)] for name in NAMES[1:]
    }
    table = [("service", "p50, ms", "p99, ms", "p99 over that without texts", "sent/s")]
    for name in NAMES:
        table.append(
            (
                name, show_spread([one["p50_ms"] for one in results[name]]), show_spread(p99[name]),
                show_spread(ratios[name]) if name in ratios else "",
                show_spread([one["sent_per_s"] for one in results[name]], "{:.0f}"),
            )
        )  # fmt: skip
    finish(
        "recorded_texts",
        {"rate": options.rate, "seconds": options.seconds, "results": results, "kept": kept},
        table,
        [
            ratio_figure(
                f"p99 with {what} kept at {options.rate:g} requests/s over the same without",
                ratios[name], bar, lambda mean, low, high: mean <= 1.1,
            )
            for name, what, bar in (
                ("texts", "redacted texts", "<= 1.1 x"), ("sealed", "redacted, encrypted texts", "<= 1.1 x"),
            )
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
