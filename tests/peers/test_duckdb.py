"""Exported records as DuckDB reads them: percentiles of sums beside those of all rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.db.test_database import row
from thrifty.db import open_database
from thrifty.db.request_log import Entry, RequestLog
from thrifty.observe.record_files import KINDS, write_records
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.response_ids import ResponseIds

duckdb = pytest.importorskip("duckdb", reason="DuckDB is in the development environment")
pytestmark = pytest.mark.peer


def test_duckdb_reads_what_was_written(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    rng = random.Random(3)
    rows = [
        row(at_s=1.8e9 + number, deployment="chat", version="a", tenant=f"t{number % 3}",
            ttft_ms=rng.lognormvariate(4, 1), status=200 if number % 10 else 500)
        for number in range(2000)
    ]  # fmt: skip
    log = RequestLog(database)
    for start in range(0, len(rows), 500):
        assert log.write([Entry(one) for one in rows[start : start + 500]]) == []
    Roller(database).catch_up()
    ids = ResponseIds(b"s" * 32, 0)
    for kind in ("requests", "rollups", "tenant-rollups"):
        write_records(database, KINDS[kind], tmp_path / f"{kind}.parquet", ids)
    database.close()
    ask = duckdb.connect(str(tmp_path / "duck.db")).execute
    path = tmp_path / "requests.parquet"
    counted = ask(
        f"SELECT tenant, count(*), sum(CAST(status >= 400 AS int)) FROM '{path}' GROUP BY ALL "
        "ORDER BY ALL"
    ).fetchall()
    assert counted == [("t0", 667, 67), ("t1", 667, 67), ("t2", 666, 66)]
    exact = ask(f"SELECT quantile_disc(ttft_ms, 0.95) FROM '{path}' WHERE status < 400").fetchone()
    day = ask(
        f"SELECT sum(requests), max(ttft_p95) FROM '{tmp_path}/rollups.parquet' WHERE step_s = 86400"
    ).fetchone()
    assert exact is not None
    assert day is not None
    assert day[0] == 2000
    assert day[1] == pytest.approx(exact[0], rel=0.011)
