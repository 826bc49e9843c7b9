"""How much memory a whole idle service takes besides its engine.

    python benchmarks/idle_memory.py [--idle 30]

`thrifty up` with one echo replica, a key, the request log, sums, alerts and checks of answers: all that
runs by itself. After a hundred requests and some seconds without any, the proportional set size (PSS:
shared pages are divided among those that share them) of every process but the replica's is added
up; then again with the management API and the console in use.
"""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import psutil

from common import ThriftyService, finish, free_port, parse_arguments, say, show_spread

BAR_MB = 350.0
SPEC: dict[str, Any] = {
    "name": "assistant", "engine": {"kind": "echo"}, "record": {"prompts": True},
    "replicas": {"count": 1},
}  # fmt: skip


def ask(url: str, key: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    """One request."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def weigh(service: ThriftyService) -> dict[str, float]:
    """MB of each process but the replica's."""
    from thrifty.fleet.process import find_ours

    replicas = {ident.pid for ident, role, _ in find_ours(service.home) if role == "replica"}
    found: dict[str, float] = {}
    for process in service.processes():
        parents = {process.pid, *(one.pid for one in process.parents())}
        if not parents & replicas and process.pid not in found:
            words = " ".join(process.cmdline())
            kind = "gateway" if "thrifty.worker" in words else "controller"
            name = f"{kind} {process.pid}"
            found[name] = process.memory_full_info().pss / 1e6
    return found


def measure(idle_s: float) -> dict[str, dict[str, float]]:
    """One service, idle and then with its console in use."""
    service = ThriftyService("idle memory", {**SPEC, "gateway": {"port": free_port()}}, fresh=True)
    try:
        made = service.run("keys", "create", "--name", "root", "--role", "admin")
        key = made.strip().splitlines()[-1]
        message = [{"role": "user", "content": "Say something."}]
        for number in range(100):
            body = {"model": "assistant", "messages": message, "max_tokens": 8, "seed": number}
            ask(service.url, key, "/v1/chat/completions", body)
        time.sleep(idle_s)
        idle = weigh(service)
        for path in (
            "/console",
            "/api/v1/overview",
            "/api/v1/status",
            "/v1/requests",
            "/api/v1/models",
        ):
            ask(service.url, key, path)
        time.sleep(idle_s / 3)
        return {"idle": idle, "console": weigh(service)}
    finally:
        service.stop()


def main() -> None:
    options = parse_arguments(
        __doc__ or "", 3, idle=(float, 30.0, "Seconds without a request before it is weighed.")
    )
    assert hasattr(psutil.Process(), "memory_full_info")
    rounds = []
    for number in range(options.rounds):
        rounds.append(measure(options.idle))
        say(f"round {number + 1} of {options.rounds} done")
    totals = {name: [sum(one[name].values()) for one in rounds] for name in ("idle", "console")}
    largest = max(totals["idle"])
    finish(
        "idle_memory",
        {"rounds": rounds, "idle_s": options.idle},
        [
            ("figure", "MB, median (range)"),
            ("idle", show_spread(totals["idle"], "{:.0f}")),
            ("with the management API and the console in use", show_spread(totals["console"], "{:.0f}")),
        ],
        [
            {
                "figure": "memory of the whole idle service besides the engine",
                "measured": f"{show_spread(totals['idle'], '{:.0f}')} MB",
                "bar": f"at most {BAR_MB:.0f} MB", "met": largest <= BAR_MB,
            }
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
