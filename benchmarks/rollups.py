"""What is kept of requests: percentiles against exact ones, disk, records a second, and pages.

    python benchmarks/rollups.py

Rows are made as gateways write them: four versions of two deployments, twenty tenants, latencies from
lognormal distributions, a tenth of the answers from the cache, a few errors. They go through the
request log's own writer into SQLite, and from there into the rollups.

- Percentiles: p50 to p99.9 of each day, by version, from the rollups and from all rows.
- Disk: the file after a million rows without texts, rollups in, with its write-ahead log emptied.
- Records: rows a second through `RequestLog.write` in batches of 512, on one core; and rows a second
  that are added to the rollups.
- Pages: what a page of charts asks of the management API's services, on rollups of `--pages` rows of
  the last year, kept as long as the spec's defaults say. The rows themselves stand beside the rollups
  in the same file.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import insert, text

from common import WORK, finish, parse_arguments, say
from thrifty.api.models import SeriesQuery
from thrifty.db import Database, open_database
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.rollups import DAY_S, HOUR_S
from thrifty.db.tables import requests, unrolled_rows
from thrifty.home import Home
from thrifty.observe.rollups.roll import Keep, Roller
from thrifty.observe.rollups.series import Asked, read_series
from thrifty.openai.response_ids import EPOCH_S
from thrifty.worker.home_services import HomeServices

MILLION = 1_000_000
BATCH = 512
VERSIONS = (("chat", "a@v1"), ("chat", "b@v2"), ("code", "c@v1"), ("code", "c@v2"))
TENANTS = 20
SHARES = (50.0, 90.0, 95.0, 99.0, 99.9)
BARS = {"error": 0.01, "disk_mb": 150.0, "records_s": 5_000.0, "page_ms": 150.0}
KEEP = Keep(minutes_s=1e12, hours_s=1e12, days_s=1e12)
PAGES = {
    "overview, minutes of an hour": ("minute", HOUR_S, "", "requests,errors,hits,cost,ttft_p95"),
    "a deployment, minutes of a day": ("minute", DAY_S, "version", "requests,ttft_p50,ttft_p95,e2e_p95"),
    "versions, hours of a month": ("hour", 30 * DAY_S, "version", "requests,errors,ttft_p95,tpot_p95"),
    "tenants, days of a year": ("day", 365 * DAY_S, "tenant", "requests,tokens_out,cost"),
    "everything, days of a year": (
        "day", 365 * DAY_S, "", "requests,errors,up,down,cost,ttft_p50,ttft_p95,ttft_p99,e2e_p95",
    ),
}  # fmt: skip
"""What the console's pages ask: step, length, division and metrics."""


def make_rows(count: int, seed: int, start_s: float, length_s: float) -> Iterator[tuple[Any, ...]]:
    """Rows in the order in which requests arrive."""
    rng = random.Random(seed)
    draw = np.random.default_rng(seed)
    done = 0
    while done < count:
        size = min(10_000, count - done)
        ttft = draw.lognormal(4.4, 0.7, size)
        tpot = draw.lognormal(3.2, 0.3, size)
        tokens = draw.geometric(1 / 120, size)
        prompts = draw.lognormal(5.5, 0.8, size)
        for place in range(size):
            at_s = start_s + (done + place) / count * length_s
            deployment, version = VERSIONS[rng.randrange(4)]
            slower = 1.0 + VERSIONS.index((deployment, version)) / 4
            hit, failed = rng.random() < 0.1, rng.random() < 0.005
            first, each = float(ttft[place]) * slower, float(tpot[place])
            answer = int(tokens[place])
            e2e = 0.4 if hit else first + each * answer
            number = int((at_s - EPOCH_S) * 1000) << 22 | 1 << 12 | (done + place) % 4096
            values = {
                "id": number, "at_s": round(at_s, 6), "origin": "client", "rerouted": False,
                "conversation_id": f"conv_{rng.getrandbits(64):016x}",
                "endpoint": "/v1/chat/completions", "deployment": deployment, "version": version,
                "replica": f"{deployment}-{rng.randrange(2)}",
                "tenant": f"tenant-{rng.randrange(TENANTS)}", "key_id": f"k{rng.randrange(TENANTS):08x}",
                "status": 503 if failed else 200, "error": "no_replica" if failed else None,
                "stream": True, "cache": "hit" if hit else "miss", "attempts": 0 if hit else 1,
                "prompt_tokens": int(prompts[place]) + 1, "completion_tokens": answer,
                "cached_tokens": 0, "queue_ms": 0.0 if hit else round(rng.expovariate(0.1), 3),
                "ttft_ms": 0.3 if hit else round(first, 3), "tpot_ms": None if hit else round(each, 3),
                "e2e_ms": round(e2e, 3), "overhead_us": round(rng.expovariate(0.01), 1),
                "cost": round(answer * 2e-6, 9),
            }  # fmt: skip
            yield tuple(values.get(name) for name in COLUMNS)
        done += size


def write_all(database: Database, rows: Iterator[tuple[Any, ...]]) -> tuple[float, int]:
    """Write rows as a gateway does; the seconds of processor time that took, and how many."""
    log, count, spent_s = RequestLog(database), 0, 0.0
    batch: list[Entry] = []

    def flush() -> None:
        nonlocal spent_s
        begun_s = time.perf_counter()
        assert log.write(batch) == []
        spent_s += time.perf_counter() - begun_s
        batch.clear()

    for row in rows:
        batch.append(Entry(row))
        count += 1
        if len(batch) == BATCH:
            flush()
    flush()
    return spent_s, count


def load_fast(database: Database, rows: Iterator[tuple[Any, ...]]) -> int:
    """Write rows with few transactions, for a file that is large and is not what is measured."""
    count = 0
    batch: list[tuple[Any, ...]] = []

    def flush() -> None:
        with database.begin() as connection:
            connection.execute(
                insert(requests), [dict(zip(COLUMNS, row, strict=True)) for row in batch]
            )
            packed = msgspec.msgpack.encode([row[0] for row in batch])
            connection.execute(insert(unrolled_rows), {"numbers": packed})
        batch.clear()

    for row in rows:
        batch.append(row)
        count += 1
        if len(batch) == 5000:
            flush()
            if count % MILLION == 0:
                say(f"{count:,} rows")
    if batch:
        flush()
    return count


def compare_percentiles(database: Database, start_s: int, length_s: int) -> dict[str, float]:
    """The largest relative error of each percentile, over all versions and days."""
    metrics = tuple(f"{name}_p{share:g}" for name in ("ttft", "tpot", "e2e") for share in SHARES)
    found = read_series(database, Asked(metrics, "version", "day", start_s, start_s + length_s))
    worst = dict.fromkeys(metrics, 0.0)
    with database.begin() as connection:
        for series in found.series:
            for place, at_s in enumerate(found.times):
                for name in ("ttft", "tpot", "e2e"):
                    query = text(
                        f"SELECT {name}_ms FROM requests WHERE deployment = :deployment AND "
                        f"version = :version AND at_s >= :a AND at_s < :b AND error IS NULL AND "
                        f"{name}_ms IS NOT NULL"
                    )
                    values = connection.execute(
                        query, {**series.labels, "a": at_s, "b": at_s + DAY_S}
                    ).scalars()
                    exact = np.sort(np.fromiter(values, float))
                    for share in SHARES:
                        metric = f"{name}_p{share:g}"
                        rank = max(1, int(np.ceil(share / 100 * len(exact) - 1e-9)))
                        told = series.values[metric][place]
                        assert told is not None
                        error = abs(told / exact[rank - 1] - 1)
                        worst[metric] = max(worst[metric], float(error))
    return worst


def measure_disk(folder: Path, count: int, start_s: int) -> dict[str, Any]:
    """A file with `count` rows of a day and their rollups."""
    database = open_database(f"sqlite:///{folder}/disk.db", migrate=True)
    begun_s = time.perf_counter()
    spent_s, written = write_all(database, make_rows(count, 1, start_s, DAY_S))
    say(f"{written:,} rows written in {time.perf_counter() - begun_s:.0f} s with their making")
    core_s, begun_s = time.process_time(), time.perf_counter()
    rolled = Roller(database, KEEP).catch_up()
    roll_s, roll_core_s = time.perf_counter() - begun_s, time.process_time() - core_s
    errors = compare_percentiles(database, start_s, DAY_S)
    with database.engine.connect() as plain:
        connection = plain.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    database.close()
    assert rolled == written == count
    return {
        "rows": count, "bytes": os.path.getsize(folder / "disk.db"),
        "records_s": written / spent_s, "rolled_s": rolled / roll_s,
        "rolled_core_s": rolled / roll_core_s, "errors": errors,
    }  # fmt: skip


def measure_pages(folder: Path, count: int, start_s: int, rounds: int) -> dict[str, Any]:
    """How long each page's series take, beside `count` rows of a year."""
    database = open_database(f"sqlite:///{folder}/pages.db", migrate=True)
    length_s = 365 * DAY_S
    load_fast(database, make_rows(count, 2, start_s, length_s))
    say("adding them to the rollups")
    begun_s = time.perf_counter()
    Roller(database).catch_up()
    say(f"{count / (time.perf_counter() - begun_s):,.0f} rows a second")
    end_s = start_s + length_s
    times: dict[str, list[float]] = {name: [] for name in PAGES}
    services = HomeServices(database, Home(folder))
    for _ in range(rounds):
        for name, (step, span_s, by, metrics) in PAGES.items():
            asked = SeriesQuery.model_validate(
                {"metrics": metrics, "by": by, "step": step, "from": end_s - span_s, "to": end_s}
            )
            begun_s = time.perf_counter()
            found = services.get_series(asked)
            answer = found.model_dump_json()
            times[name].append((time.perf_counter() - begun_s) * 1000)
            assert len(answer) > 1000
            assert any(sum(one.values["requests"]) for one in found.series)  # type: ignore[arg-type]
    database.close()
    size = os.path.getsize(folder / "pages.db")
    return {"rows": count, "bytes": size, "times_ms": times}


def told(what: str, measured: str, bar: str, met: bool) -> dict[str, Any]:
    """A figure in its own unit."""
    return {"figure": what, "measured": measured, "bar": bar, "met": met}


def main() -> None:
    options = parse_arguments(
        __doc__ or "", 30,
        rows=(int, MILLION, "Rows for disk, records and percentiles."),
        pages=(int, 10 * MILLION, "Rows that stand beside the rollups that pages read."),
    )  # fmt: skip
    start_s = int(time.time()) // DAY_S * DAY_S - 400 * DAY_S
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as name:
        folder = Path(name)
        disk = measure_disk(folder, options.rows, start_s)
        (folder / "disk.db").unlink()
        year_s = int(time.time()) // 60 * 60 - 365 * DAY_S
        pages = measure_pages(folder, options.pages, year_s, options.rounds)
    worst = max(disk["errors"].values())
    megabytes = disk["bytes"] / disk["rows"]
    table = [("page", "median, ms", "p95, ms")]
    tails = {}
    for page, times in pages["times_ms"].items():
        tails[page] = float(np.percentile(times, 95))
        table.append((page, f"{median(times):.1f}", f"{tails[page]:.1f}"))
    slowest = max(tails, key=lambda page: tails[page])
    figures = [
        told(
            f"percentiles from rollups of {disk['rows']:,} requests against exact ones, largest error",
            f"{worst:.2%}", f"<= {BARS['error']:.0%}", worst <= BARS["error"],
        ),
        told(
            "bytes on disk for a million requests without texts, rollups in",
            f"{megabytes:.0f} MB", f"<= {BARS['disk_mb']:.0f} MB", megabytes <= BARS["disk_mb"],
        ),
        told(
            "request records a second into SQLite, one core",
            f"{disk['records_s']:,.0f}", f">= {BARS['records_s']:,.0f}",
            disk["records_s"] >= BARS["records_s"],
        ),
        told(
            f"a page's series beside {pages['rows']:,} requests, p95 of the slowest page ({slowest})",
            f"{tails[slowest]:.0f} ms", f"<= {BARS['page_ms']:.0f} ms",
            tails[slowest] <= BARS["page_ms"],
        ),
    ]  # fmt: skip
    say(f"added to the rollups: {disk['rolled_s']:,.0f} rows a second")
    finish(
        "rollups", {"raw": {"disk": disk, "pages": pages}}, table, figures, save=not options.no_save
    )


if __name__ == "__main__":
    main()
