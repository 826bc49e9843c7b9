"""Are requests lost when deployments wake from zero, and their replicas are killed meanwhile?

    python benchmarks/wakes.py
    python benchmarks/wakes.py --wakes 20 --model-wakes 0

Eight deployments of the `echo` engine, which loads for 1 s, sleep as soon as nobody asks. Again and
again, each gets a burst of 1 to 12 requests, half of them streams, and its waking replica is killed
(SIGKILL) in three of ten cases, at a random moment. One of ten clients hangs up while its request is
held. Then the same with the default model, one deployment. A request counts as lost if its client
stays and does not get its whole answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from typing import Any

from common import ThriftyService, finish, free_port, parse_arguments, say
from thrifty.db import Database, open_database
from thrifty.db.fleet import ReplicaRow, read_fleet
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError
from thrifty.http.origin import parse_origin

DEPLOYMENTS = 8
MOST_REQUESTS = 12
KILLS = 0.3
HANG_UPS = 0.1
TIMEOUT_S = 300.0
ASK = '{"model": "%s", "messages": [{"role": "user", "content": "say this %d"}], "max_tokens": 8%s}'
_JSON = b"content-type: application/json\r\n"


class Wakes:
    """Wakes the deployments of one service, and counts what becomes of the requests."""

    def __init__(self, service: ThriftyService, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.times_s: list[float] = []
        """From the first request of each burst to its first answer."""
        self._url = service.url
        self._home = Home(service.home)
        self._random = random.Random(seed)
        self._numbers = iter(range(1, 1 << 30))

    async def run(self, names: list[str], wakes: int) -> None:
        """Wake deployments that often, all together."""
        database = open_database(self._home.database_url, migrate=False)
        left = iter(range(wakes))

        async def cycle(name: str) -> None:
            for number in left:
                await self._wait_asleep(database, name)
                await self._wake(database, name)
                if number % 50 == 49:
                    say(f"{number + 1} of {wakes} wakes, {self.counts['lost']} requests lost")

        await asyncio.gather(*map(cycle, names))
        database.close()

    async def _wait_asleep(self, database: Database, name: str) -> None:
        """Wait until no replica of a deployment starts or is ready."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while await self._find(database, name, "starting", "ready", "backoff"):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{name} does not go back to zero")
            await asyncio.sleep(0.05)

    async def _find(self, database: Database, name: str, *states: str) -> list[ReplicaRow]:
        state = await asyncio.to_thread(read_fleet, database)
        return [r for r in state.replicas if r.deployment == name and r.state in states]

    async def _wake(self, database: Database, name: str) -> None:
        self.counts["wakes"] += 1
        began_s = time.monotonic()
        asked = [
            asyncio.ensure_future(self._ask(name))
            for _ in range(self._random.randint(1, MOST_REQUESTS))
        ]
        if self._random.random() < KILLS:
            await asyncio.sleep(self._random.uniform(0.0, 1.5))
            for row in await self._find(database, name, "starting"):
                if row.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(row.pid, signal.SIGKILL)
                        self.counts["kills"] += 1
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        self.times_s.append(time.monotonic() - began_s)
        await asyncio.gather(*asked)

    async def _ask(self, name: str) -> None:
        number = next(self._numbers)
        stays = self._random.random() >= HANG_UPS
        streamed = self._random.random() < 0.5
        patience_s = TIMEOUT_S if stays else self._random.uniform(0.0, 0.8)
        self.counts["requests" if stays else "hung up"] += 1
        client = HttpClient()
        try:
            async with asyncio.timeout(patience_s):
                body = ASK % (name, number, ', "stream": true' if streamed else "")
                answer = await client.open(
                    parse_origin(self._url), "POST", "/v1/chat/completions", headers=_JSON,
                    body=body.encode(), head_timeout_s=TIMEOUT_S,
                )  # fmt: skip
                data = await answer.read()
            whole = data.endswith(b"data: [DONE]\n\n") if streamed else data.endswith(b"}")
            fault = None if answer.status == 200 and whole else f"{answer.status} {data[-300:]!r}"
        except (TransportError, OSError, TimeoutError) as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            client.close()
        if stays and fault is not None:
            self.counts["lost"] += 1
            self.faults.append(fault)


def make_spec(deployments: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "deployments": deployments, "cache": False,
        "replicas": {"min": 0, "max": 1, "idle_after": "200ms"},
        "gateway": {"port": free_port(), "workers": 2}, "record": {"requests": False},
    }  # fmt: skip


def measure(
    name: str, deployments: list[dict[str, Any]], wakes: int, seed: int
) -> tuple[Counter[str], list[str], list[float]]:
    service = ThriftyService(name, make_spec(deployments), fresh=False)
    found = Wakes(service, seed)
    try:
        asyncio.run(found.run([one["name"] for one in deployments], wakes))
    finally:
        service.stop()
    return found.counts, found.faults, found.times_s


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=1,
        wakes=(int, 1000, "How often `echo` deployments wake."),
        **{"model-wakes": (int, 30, "How often the model wakes.")},
    )  # fmt: skip
    echo = {"engine": {"kind": "echo", "load": "1s", "slots": 16}}
    services = {
        "echo, load: 1s": (
            [{"name": f"echo-{i}", **echo} for i in range(DEPLOYMENTS)], options.wakes,
        ),
        "the default model": ([{"name": "model", "compress": "int8"}], options.model_wakes),
    }  # fmt: skip
    rows, figures, record = [], [], {}
    for name, (deployments, wakes) in services.items():
        if not wakes:
            continue
        say(f"{name}: {wakes} wakes")
        counts, faults, times_s = measure(f"wakes {len(deployments)}", deployments, wakes, wakes)
        record[name] = {"counts": dict(counts), "faults": faults[:50], "first_answer_s": times_s}
        middle = sorted(times_s)[len(times_s) // 2]
        rows.append((name, counts["wakes"], counts["kills"], counts["requests"], counts["hung up"],
                     counts["lost"], f"{middle:.2f}"))  # fmt: skip
        figures.append({"figure": f"requests lost in {counts['wakes']} wakes of {name}",
                        "measured": f"{counts['lost']} of {counts['requests']}", "bar": "0",
                        "met": not counts["lost"]})  # fmt: skip
    finish(
        "wakes",
        record,
        [("deployment", "wakes", "kills", "requests", "hung up", "lost", "first answer, median s"),
         *rows],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
