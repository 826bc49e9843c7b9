"""Node numbers and secrets, claimed by several processes concurrently."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.db.databases import KINDS, open_kind
from thrifty.db import Database, open_database
from thrifty.db.leases import take_lease
from thrifty.db.nodes import NodeClaim
from thrifty.db.secrets import read_secret

CLAIM = """
import sys
from thrifty.db import open_database
from thrifty.db.nodes import NodeClaim
from thrifty.db.secrets import read_secret
database = open_database(sys.argv[1], migrate=False)
print("ready", flush=True)
input()
claim = NodeClaim(database, nodes=int(sys.argv[2]))
print(claim.number, claim.held, read_secret(database, "ids").hex(), flush=True)
input()
claim.release()
"""


@pytest.fixture(params=KINDS)
def database(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


def test_concurrent_processes_get_distinct_numbers_and_one_secret(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, url, "5"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        found = [process.stdout.readline().split() for process in processes if process.stdout]
        held = [int(number) for number, held, _ in found if held == "True"]
        assert sorted(held) == [0, 1, 2, 3, 4]
        assert {secret for _, _, secret in found} == {read_secret(database, "ids").hex()}
        assert not NodeClaim(database, nodes=5).held
    finally:
        for process in processes:
            process.communicate("\n", timeout=60)
    assert [process.returncode for process in processes] == [0] * 6
    assert NodeClaim(database, nodes=5).held


def test_a_lost_number_is_replaced(database: Database) -> None:
    claim = NodeClaim(database, nodes=2)
    first = claim.number
    assert claim.renew() == first
    assert take_lease(database, f"node-{first}", "other", 600, force=True)
    assert claim.renew() == 1 - first
    assert claim.held
    assert take_lease(database, f"node-{1 - first}", "other", 600, force=True)
    assert claim.renew() == 1 - first
    assert not claim.held


def test_an_expired_number_is_free(database: Database) -> None:
    gone = NodeClaim(database, nodes=1, ttl_s=-1.0)
    claim = NodeClaim(database, nodes=1)
    assert (claim.number, claim.held) == (gone.number, True)
    gone.renew()
    assert not gone.held
    gone.release()
    assert claim.renew() == 0
    assert claim.held


def test_secrets_have_names(database: Database) -> None:
    first = read_secret(database, "ids")
    assert (len(first), read_secret(database, "ids")) == (32, first)
    assert read_secret(database, "other") != first


def test_without_the_database_the_number_stays(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    claim = NodeClaim(database)
    os.rename(tmp_path / "t.db", tmp_path / "away.db")
    assert claim.renew() == claim.number
    other = NodeClaim(database)
    assert not other.held
    assert 0 <= other.number < 1024
    os.rename(tmp_path / "away.db", tmp_path / "t.db")
    other.renew()
    assert other.held
    other.release()
    claim.release()
    database.close()
