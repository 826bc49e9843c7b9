"""What it costs to see everything: the gateway with all telemetry on, over the same with all off.

    python benchmarks/telemetry.py

On: the request log with its sums by minute, hour and day, metrics that are scraped every second,
traces and metrics by OTLP to a collector with the defaults (5% of the requests), alerts, tokens for
feedback, tenants. Off: none of it; metrics are counted all the same, since nothing turns that off.
nginx stands in for the model and for the collector, and answers at once. smg (Rust) with its
defaults is measured beside, one connection at a time.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

from common import (
    ThriftyService,
    finish,
    free_port,
    in_turns,
    need_tool,
    nginx,
    parse_arguments,
    ratio_figure,
    say,
    show_spread,
    spread,
    wrk,
)
from gateway_overhead import ANSWER, FRESH, start_smg

SCRAPE_S = 1.0


def start(name: str, upstream: str, **keys: Any) -> tuple[ThriftyService, str, str]:
    """A service with one gateway worker, a key for requests, and one for scraping."""
    service = ThriftyService(
        f"telemetry {name}",
        {"model": "smol", "engine": {"kind": "remote", "urls": [f"{upstream}/v1"]},
         "gateway": {"port": free_port()}, **keys},
        fresh=True,
    )  # fmt: skip
    made = [
        service.run("keys", "create", "--name", role, "--role", role).strip().splitlines()[-1]
        for role in ("user", "viewer")
    ]
    return service, made[0], made[1]


@contextlib.contextmanager
def scraped(url: str, key: str) -> Iterator[None]:
    """Read the metrics every second, as Prometheus would."""
    stopping = threading.Event()

    def scrape() -> None:
        while not stopping.wait(SCRAPE_S):
            request = urllib.request.Request(
                f"{url}/metrics", headers={"authorization": f"Bearer {key}"}
            )
            urllib.request.urlopen(request, timeout=30).read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def read_counter(url: str, key: str, name: str) -> float:
    """The sum of a counter over its labels."""
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})
    page = urllib.request.urlopen(request, timeout=30).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=8)
    version = subprocess.run(
        [need_tool("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=False
    ).stderr
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(nginx(ANSWER))
        off, off_key, _ = start(
            "off", upstream, record={"requests": False}, observe={"tenants": 0}, alerts={"to": []}
        )
        stack.callback(off.stop)
        on, on_key, viewer = start(
            "on", upstream, observe={"otlp": {"endpoint": upstream, "interval": "1s"}},
            feedback={"tokens": True},
        )  # fmt: skip
        stack.callback(on.stop)
        smg, smg_url, smg_version = start_smg(upstream)
        stack.callback(smg.stop)
        servers = {"off": off, "on": on, "smg": smg}
        urls = {"nginx": upstream, "off": off.url, "on": on.url, "smg": smg_url}
        keys = {"off": off_key, "on": on_key}
        salt = 0

        def turn(name: str, connections: int):  # type: ignore[no-untyped-def]
            def measure() -> dict[str, float]:
                nonlocal salt
                for other, server in servers.items():
                    (server.wake if other == name else server.sleep)()
                scraping = scraped(on.url, viewer) if name == "on" else contextlib.nullcontext()
                with scraping:
                    for seconds in (1, options.seconds):
                        salt += 1
                        text = FRESH % {"key": keys.get(name, ""), "salt": salt}
                        result = wrk(urls[name], text, connections, seconds)
                return result

            return measure

        say("64 connections")
        many = in_turns(options.rounds, {n: turn(n, 64) for n in ("off", "on")})
        say("one connection")
        one = in_turns(options.rounds, {n: turn(n, 1) for n in ("nginx", "off", "on", "smg")})
        on.wake()
        sent = read_counter(on.url, viewer, "thrifty_traces_exported_total")
        lost = read_counter(on.url, viewer, "thrifty_traces_dropped_total")
        rows_lost = read_counter(on.url, viewer, "thrifty_log_rows_dropped_total")

    rates = [a["per_s"] / b["per_s"] for a, b in zip(many["on"], many["off"], strict=True)]
    overhead = {
        name: [a["p50_us"] - b["p50_us"] for a, b in zip(one[name], one["nginx"], strict=True)]
        for name in ("off", "on", "smg")
    }
    over_smg = [a / b for a, b in zip(overhead["on"], overhead["smg"], strict=True)]
    finish(
        "telemetry",
        {
            "versions": {"smg": smg_version, "nginx": version.strip()}, "rounds": options.rounds,
            "seconds": options.seconds, "64_connections": many, "one_connection": one,
            "overhead_us": {name: spread(values) for name, values in overhead.items()},
            "traces": {"sent": sent, "lost": lost}, "rows_lost": rows_lost,
        },
        [
            ("figure", "all off", "all on", smg_version, "ratio"),
            ("requests/s, 64 connections, one worker",
             *(show_spread([r["per_s"] for r in many[n]], "{:.0f}") for n in ("off", "on")), "",
             show_spread(rates)),
            ("overhead at the median, 1 connection, us",
             *(show_spread(overhead[n], "{:.0f}") for n in ("off", "on", "smg")),
             f"{show_spread(over_smg)} of smg"),
            ("traces sent, lost; rows of the log lost", "", f"{sent:.0f}, {lost:.0f}; {rows_lost:.0f}",
             "", ""),
        ],
        [
            ratio_figure(
                "gateway requests/s, all telemetry on over all off", rates, ">= 0.92 x",
                lambda mean, low, high: mean >= 0.92,
            ),
            ratio_figure(
                f"gateway overhead at the median with all telemetry on, over that of {smg_version}",
                over_smg, "<= 0.9 x", lambda mean, low, high: mean <= 0.9,
            ),
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
