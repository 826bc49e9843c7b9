"""The audit log: each administrative act is in it, and what was tampered with shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from typer.testing import CliRunner

from tests.db.databases import KINDS, empty_tables, open_kind
from thrifty.cli.app import app
from thrifty.db import Database, open_database
from thrifty.db.audit import FIRST_HASH, Head, canonical_json, list_acts, parse_head, verify_audit
from thrifty.db.cache import add_purge
from thrifty.db.erasures import note_erasure, note_export
from thrifty.db.keys import create_key, revoke_key
from thrifty.db.tables import audit, audit_head
from thrifty.errors import NameTakenError
from thrifty.home import HOME_VARIABLE, Home


@pytest.fixture(scope="module", params=KINDS)
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(shared: Database) -> Database:
    empty_tables(shared)
    return shared


def act(database: Database) -> None:
    create_key(database, "ann", tenant="acme", who="root (test)")
    add_purge(database, tenant="acme", who="root (test)")
    revoke_key(database, "ann", who="eve (test)")
    note_erasure(database, ["u-x"], 5, who="root (test)")
    note_export(database, Path("/x/rows.jsonl"), "sft", who="root (test)")


def test_acts_are_recorded_under_pseudonyms(database: Database) -> None:
    act(database)
    acts = list_acts(database, 10)[::-1]
    assert [one.act for one in acts] == [
        "key.create", "cache.purge", "key.revoke", "person.forget", "feedback.export",
    ]  # fmt: skip
    text = json.dumps([vars(one) for one in acts])
    for name in ("ann", "acme", "root", "eve", "rows.jsonl"):
        assert name not in text
    assert len({one.actor for one in acts}) == 2
    assert [one.act for one in list_acts(database, 10, "eve (test)")] == ["key.revoke"]
    verdict = verify_audit(database)
    assert (verdict.fault, verdict.head.count) == (None, 5)


def test_an_act_that_fails_leaves_no_entry(database: Database) -> None:
    create_key(database, "ann")
    with pytest.raises(NameTakenError):
        create_key(database, "ann")
    assert len(list_acts(database, 10)) == 1
    assert verify_audit(database).fault is None


def test_an_empty_log_is_whole(database: Database) -> None:
    assert verify_audit(database).head == Head(0, FIRST_HASH)
    assert verify_audit(database, Head(0, FIRST_HASH)).fault is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (update(audit).where(audit.c.id == 2).values(details="{}"), "entry 2 was changed"),
        (update(audit).where(audit.c.id == 3).values(actor="u-other"), "entry 3 was changed"),
        (update(audit).where(audit.c.id == 3).values(hash="0" * 64), "entry 3 was changed"),
        (delete(audit).where(audit.c.id == 3), "entry 3 is missing"),
        (delete(audit).where(audit.c.id == 5), "missing at the end"),
        (delete(audit), "missing at the end"),
        (delete(audit_head), "no head"),
        (update(audit_head).values(entries=4), "behind the head"),
        (update(audit_head).values(signature="0" * 64), "signature"),
        (
            insert(audit).values(id=6, at_ms=1, act="x", actor="x", details="{}", hash="x"),
            "behind the head",
        ),
    ],
    ids=range(10),
)
def test_tampering_shows(database: Database, change: Any, fault: str) -> None:
    act(database)
    with database.begin() as connection:
        connection.execute(change)
    found = verify_audit(database).fault
    assert found is not None
    assert fault in found


def test_a_log_that_was_cut_or_rewritten_with_its_head_shows_by_a_kept_head(
    database: Database,
) -> None:
    act(database)
    kept = verify_audit(database).head
    create_key(database, "bob")
    assert verify_audit(database, kept).fault is None
    with database.begin() as connection:
        connection.execute(delete(audit))
        connection.execute(delete(audit_head))
    create_key(database, "eve")
    assert verify_audit(database).fault is None, "a forger with all secrets"
    assert "kept head counts 5" in str(verify_audit(database, kept).fault)
    for number in range(6):
        create_key(database, f"eve{number}")
    assert "rewritten" in str(verify_audit(database, kept).fault)


def test_acts_at_once_make_one_chain(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: create_key(database, f"k{number}"), range(12)))
    verdict = verify_audit(database)
    assert (verdict.fault, verdict.head.count) == (None, 12)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    value = {"b": "\u20ac$\u000f\nA'B\"\\\\\"/", "a": 1, "c": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")}  # fmt: skip
    assert canonical_json(value) == '{"a":1,"b":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/","c":"😀"}'


def test_the_commands_list_verify_and_print_the_head(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments], env={HOME_VARIABLE: str(tmp_path)})

    assert run("keys", "create", "--name", "ann").exit_code == 0
    assert json.loads(run("audit", "list", "--json").stdout)[0]["act"] == "key.create"
    head = run("audit", "head").stdout.strip()
    assert parse_head(head).count == 1
    whole = run("audit", "verify", "--head", head)
    assert (whole.exit_code, whole.stdout) == (0, "The audit log is whole: 1 entries.\n")
    database = open_database(Home(tmp_path).database_url, migrate=False)
    with database.begin() as connection:
        assert len(connection.execute(select(audit.c.id)).all()) == 1
        connection.execute(delete(audit))
    database.close()
    broken = run("audit", "verify", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["whole"] is False
