"""What a second version costs the gateway: one version, and two at 90:10, in turns.

    python benchmarks/gateway_versions.py

nginx answers every request at once, for both versions, so that what is measured is the gateway alone:
one worker, with keys, the exact cache's look-up, metrics and the request log on. Each request asks
something new, so that each begins a conversation and is given a version by its hash.
"""

from __future__ import annotations

import contextlib

from common import (
    ThriftyService,
    finish,
    free_port,
    in_turns,
    nginx,
    parse_arguments,
    ratio_figure,
    say,
    show_spread,
    spread,
    wrk,
)
from gateway_overhead import ANSWER, FRESH


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=12)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(nginx(ANSWER))
        engine = {"kind": "remote", "urls": [f"{upstream}/v1"]}
        both = [{"label": "a", "weight": 90}, {"label": "b", "weight": 10}]
        services, keys = {}, {}
        for name, versions in (("one", both[:1]), ("two", both)):
            service = ThriftyService(
                f"versions {name}",
                {"name": "smol", "model": "smol", "engine": engine, "versions": versions,
                 "gateway": {"port": free_port()}},
            )  # fmt: skip
            stack.callback(service.stop)
            service.run("keys", "revoke", "bench")
            created = service.run("keys", "create", "--name", "bench")
            services[name], keys[name] = service, created.strip().splitlines()[-1]
        urls = {"nginx": upstream, **{name: service.url for name, service in services.items()}}
        salt = 0

        def turn(name: str, connections: int):  # type: ignore[no-untyped-def]
            def measure() -> dict[str, float]:
                nonlocal salt
                for other, service in services.items():
                    (service.wake if other == name else service.sleep)()
                for seconds in (1, options.seconds):
                    salt += 1
                    text = FRESH % {"key": keys.get(name, "none"), "salt": salt}
                    result = wrk(urls[name], text, connections, seconds)
                return result

            return measure

        say("one connection")
        one = in_turns(options.rounds, {name: turn(name, 1) for name in urls})
        say("64 connections")
        many = in_turns(options.rounds, {name: turn(name, 64) for name in services})
    overhead = {
        name: [a["p50_us"] - b["p50_us"] for a, b in zip(one[name], one["nginx"], strict=True)]
        for name in services
    }
    ratios = [two / single for two, single in zip(overhead["two"], overhead["one"], strict=True)]
    per_s = {name: [result["per_s"] for result in results] for name, results in many.items()}
    rates = [two / single for two, single in zip(per_s["two"], per_s["one"], strict=True)]
    finish(
        "gateway_versions",
        {
            "rounds": options.rounds, "seconds": options.seconds, "one_connection": one,
            "64_connections": many,
            "overhead_us": {name: spread(values) for name, values in overhead.items()},
        },
        [
            ("figure", "one version", "two at 90:10", "ratio"),
            ("overhead at the median, 1 connection, us", show_spread(overhead["one"], "{:.0f}"),
             show_spread(overhead["two"], "{:.0f}"), show_spread(ratios)),
            ("requests/s, 64 connections", show_spread(per_s["one"], "{:.0f}"),
             show_spread(per_s["two"], "{:.0f}"), show_spread(rates)),
        ],
        [
            ratio_figure(
                "gateway overhead with two versions at 90:10, over one version", ratios,
                "lower end <= 1.05 x", lambda mean, low, high: low <= 1.05,
            ),
            ratio_figure(
                "gateway requests/s with two versions at 90:10, over one version", rates,
                "(none)", lambda mean, low, high: True,
            ),
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
