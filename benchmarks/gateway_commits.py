"""What the gateway costs now, over what it cost at another commit: the two in turns.

    python benchmarks/gateway_commits.py --against 281e942

The other commit is unpacked beside this one and run by the same Python with the same packages. nginx
answers every request at once, so that what is measured is the gateway alone: one worker, with keys,
the exact cache's look-up, metrics and the request log on. Each request asks something new.
"""

from __future__ import annotations

import contextlib
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import psutil

from common import (
    ROOT,
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
    wrk,
)
from gateway_overhead import ANSWER, FRESH

PARENT = "281e942"
"""The last commit before the work on the clients' dialect."""


class CommitService(ThriftyService):
    """A service that runs the source in `tree`."""

    def __init__(self, name: str, tree: Path, spec: dict[str, Any]) -> None:
        self.variables = {"PYTHONPATH": str(tree / "src")}
        super().__init__(name, spec, fresh=True)


def unpack(commit: str) -> Path:
    """The tree of a commit, in a folder named by it."""
    folder = WORK / "trees" / commit
    if not folder.exists():
        part = folder.with_name(f"{commit}.part")
        part.mkdir(parents=True, exist_ok=True)
        archive = part / "tree.tar"
        subprocess.run(
            ["git", "archive", "--output", str(archive), commit, "src"], cwd=ROOT, check=True
        )
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        part.rename(folder)
    return folder


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=12, against=(str, PARENT, "The commit to compare with.")
    )
    trees = {"now": ROOT, options.against: unpack(options.against)}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(nginx(ANSWER))
        services, keys, workers = {}, {}, {}
        for name, tree in trees.items():
            service = CommitService(
                f"commit {name}", tree,
                {"model": "smol", "engine": {"kind": "remote", "urls": [f"{upstream}/v1"]},
                 "gateway": {"port": free_port()}},
            )  # fmt: skip
            stack.callback(service.stop)
            created = service.run("keys", "create", "--name", "bench")
            services[name], keys[name] = service, created.strip().splitlines()[-1]
            workers[name] = psutil.Process(service.gateway_pid())
        urls = {"nginx": upstream, **{name: service.url for name, service in services.items()}}
        salt = 0

        def turn(name: str, connections: int):  # type: ignore[no-untyped-def]
            def measure() -> dict[str, float]:
                nonlocal salt
                for other, service in services.items():
                    (service.wake if other == name else service.sleep)()
                for seconds in (1, options.seconds):
                    salt += 1
                    before = workers[name].cpu_times() if name in workers else None
                    text = FRESH % {"key": keys.get(name, "none"), "salt": salt}
                    result = wrk(urls[name], text, connections, seconds)
                if before is not None:
                    after = workers[name].cpu_times()
                    used_s = after.user + after.system - before.user - before.system
                    result["cpu_us"] = used_s * 1e6 / result["requests"]
                return result

            return measure

        say("one connection")
        one = in_turns(options.rounds, {name: turn(name, 1) for name in urls})
        say("64 connections")
        many = in_turns(options.rounds, {name: turn(name, 64) for name in services})
    values: dict[str, dict[str, list[float]]] = {
        "overhead at the median, 1 connection, us": {
            name: [a["p50_us"] - b["p50_us"] for a, b in zip(one[name], one["nginx"], strict=True)]
            for name in services
        },
        "requests/s, 64 connections": {n: [r["per_s"] for r in many[n]] for n in services},
        "CPU of the worker for each request, us": {
            n: [r["cpu_us"] for r in many[n]] for n in services
        },
    }
    rows, figures = [], []
    for what, by_name in values.items():
        now, then = by_name["now"], by_name[options.against]
        ratios = [a / b for a, b in zip(now, then, strict=True)]
        rows.append(
            (what, show_spread(then, "{:.0f}"), show_spread(now, "{:.0f}"), show_spread(ratios))
        )
        more_is_better = what.startswith("requests/s")
        figures.append(
            ratio_figure(
                f"gateway {what}, over commit {options.against}", ratios,
                "the interval holds 1.0, or better",
                lambda mean, low, high, more=more_is_better: high >= 1 if more else low <= 1,
            )
        )  # fmt: skip
    finish(
        "gateway_commits",
        {"rounds": options.rounds, "seconds": options.seconds, "against": options.against,
         "one_connection": one, "64_connections": many},
        [("figure", options.against, "now", "ratio"), *rows],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
