"""What the gateway's memory does over many requests, the database away half of the time.

    python benchmarks/gateway_memory.py

Resident memory of the gateway after 20,000 and after 200,000 requests. The database is locked by
somebody else during every other 10,000 of them, the way a stuck job would. Each request asks something
new and every answer is cached; the cache's bound is set low enough to be reached before the first
reading.
"""

from __future__ import annotations

import sqlite3
from statistics import mean

import psutil

from common import ThriftyService, figure, finish, free_port, nginx, parse_arguments, say, wrk
from gateway_overhead import ANSWER, FRESH

FIRST, LAST, STEP = 20_000, 200_000, 10_000


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=1)
    with nginx(ANSWER) as upstream:
        service = ThriftyService(
            "gateway memory",
            {"model": "smol", "engine": {"kind": "remote", "urls": [f"{upstream}/v1"]},
             "cache": {"exact": {"max_bytes": "5MB"}}, "gateway": {"port": free_port()}},
        )  # fmt: skip
        service.run("keys", "revoke", "bench")
        key = service.run("keys", "create", "--name", "bench").strip().splitlines()[-1]
        gateway = psutil.Process(service.gateway_pid())
        readings: list[tuple[int, int, bool]] = []
        speeds: list[float] = []
        total, away = 0, True
        try:
            while total < LAST:
                locker = None
                if away:
                    locker = sqlite3.connect(
                        service.home / "thrifty.db", isolation_level=None, timeout=30
                    )
                    locker.execute("BEGIN EXCLUSIVE")
                target = total + STEP
                rates = []
                while total < target:
                    report = wrk(service.url, FRESH % {"key": key, "salt": total}, 32, 1)
                    total += int(report["requests"])
                    rates.append(report["per_s"])
                if locker is not None:
                    locker.execute("ROLLBACK")
                    locker.close()
                readings.append((total, gateway.memory_info().rss, away))
                speeds.append(mean(rates))
                say(f"{total} requests: {gateway.memory_info().rss / 1e6:.1f} MB")
                away = not away
        finally:
            service.stop()
    first = next(rss for count, rss, _ in readings if count >= FIRST)
    last = readings[-1][1]
    quarter = max(1, len(speeds) // 4)
    slower = mean(speeds[-quarter:]) / mean(speeds[:quarter])
    finish(
        "gateway_memory",
        {"readings": [{"requests": c, "rss_bytes": r, "database_away": a} for c, r, a in readings],
         "ratio": last / first, "requests_per_s": speeds, "last_quarter_over_first": slower},
        [
            ("requests", "resident memory, MB", "ratio"),
            (str(next(c for c, _, _ in readings if c >= FIRST)), f"{first / 1e6:.1f}", "1.00"),
            (str(readings[-1][0]), f"{last / 1e6:.1f}", f"{last / first:.2f}"),
            ("requests/s, the last quarter over the first", "", f"{slower:.2f}"),
        ],
        [figure("resident memory of the gateway after 200,000 requests over that after 20,000, database "
                "away half of the time", [last / first], "<= 1.1 x", last / first <= 1.1)],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
