"""From a request at zero to its first token, on each rung.

    python benchmarks/zero_to_first_token.py

The default model with 8-bit weights, the deployment at zero. A client sends one streamed request and
notes when the first token comes. In turns, the replica is stopped and the model's files are dropped
from the page cache; `cached`, where the files were dropped too and the service has brought them back;
parked; and ready, for comparison. Every turn waits until the deployment is on its rung again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from common import ThriftyService, finish, free_port, in_turns, parse_arguments, show_spread, spread
from thrifty.http.client import HttpClient
from thrifty.http.origin import parse_origin

BARS_S = {"stopped, files dropped": 3.0, "cached": 3.0, "parked": 0.5}
IDLE_S = 1.0
BODY = (
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "Name a colour."}],'
    b' "max_tokens": 8, "stream": true}'
)
_JSON = b"content-type: application/json\r\n"


def make_spec(standby: str | None) -> dict[str, Any]:
    replicas: dict[str, Any] = {"count": 1}
    if standby is not None:
        replicas = {"min": 0, "max": 1, "idle_after": f"{IDLE_S}s", "standby": standby}
    return {
        "name": "zero", "compress": "int8", "engine": {"kind": "openvino"}, "replicas": replicas,
        "cache": False, "gateway": {"port": free_port()},
    }  # fmt: skip


def drop_files(service: ThriftyService) -> None:
    """Drop the files of all stored models from the page cache."""
    for path in (service.home / "models").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bring_back(service: ThriftyService) -> None:
    """Drop the files, and wait until the service has read them again."""
    drop_files(service)
    wait_rung(service, "cached")


def wait_rung(service: ThriftyService, rung: str) -> None:
    """Wait until the deployment is on a rung, and the replica's process has gone or is parked."""
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        deployment = service.status["deployments"][0]
        zero = deployment["versions"][0]["zero"]
        states = [one["state"] for one in deployment["replicas"]]
        if zero is None or (zero["rung"] == rung and states in ([], ["parked"])):
            # A parked replica gives back its memory once gateways know that it is parked.
            time.sleep(3.0 if rung == "parked" else 0.2)
            return
        time.sleep(0.2)
    raise SystemExit(f"the deployment did not come to the rung {rung!r}: {service.status}")


async def measure_first_token(url: str) -> float:
    """Seconds from sending a request to the first token of its answer."""
    client, events = HttpClient(), asyncio.Event()
    first_s = 0.0

    def take(data: bytes) -> None:
        nonlocal first_s
        if not first_s and b'"content":"' in data.replace(b'"content":""', b""):
            first_s = time.monotonic()
            events.set()

    began_s = time.monotonic()
    try:
        answer = await client.open(
            parse_origin(url), "POST", "/v1/chat/completions", headers=_JSON,
            body=BODY.replace(b"MODEL", b"zero"),
        )  # fmt: skip
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {(await answer.read()).decode()}")
        answer.attach(take)
        await answer.done
    finally:
        client.close()
    return first_s - began_s


def make_turn(
    service: ThriftyService, rung: str, prepare: Callable[[], None]
) -> Callable[[], float]:
    def turn() -> float:
        wait_rung(service, rung)
        prepare()
        return asyncio.run(measure_first_token(service.url))

    return turn


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    services = [
        ThriftyService(f"zero {standby or 'ready'}", make_spec(standby))
        for standby in ("stopped", "cached", "parked", None)
    ]
    stopped, cached, parked, ready = services
    try:
        found = in_turns(
            options.rounds,
            {
                "stopped, files dropped": make_turn(
                    stopped, "stopped", lambda: drop_files(stopped)
                ),
                "cached": make_turn(cached, "cached", lambda: bring_back(cached)),
                "parked": make_turn(parked, "parked", lambda: None),
                "ready": make_turn(ready, "awake", lambda: None),
            },
        )
        wait_rung(parked, "parked")
        memory = {
            service.name: [
                (one["state"], one["memory_bytes"])
                for one in service.status["deployments"][0]["replicas"]
            ]
            for service in services
        }
    finally:
        for service in services:
            service.stop()
    figures = [
        {"figure": f"zero to first token, 135M, OpenVINO: {name}",
         "measured": f"{show_spread(found[name])} s", "bar": f"<= {bar_s:g} s",
         "met": spread(found[name])["median"] <= bar_s}
        for name, bar_s in BARS_S.items()
    ]  # fmt: skip
    finish(
        "zero_to_first_token",
        {"seconds": found, "memory_bytes": memory},
        [("before the request", "to the first token, s"),
         *((name, show_spread(values)) for name, values in found.items())],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
