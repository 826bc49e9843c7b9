"""Values that no database can hold or compare, on every route that leads to one.

They are the client's mistake, or are made to fit. They are never taken for an absent database, and
never in the way of others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.batches.talk import Talk, make_line
from tests.db.databases import KINDS, open_kind
from tests.parts import GatewayUnderTest, running_echo, running_gateway, until
from thrifty.api.app import to_wire_error
from thrifty.batches.settings import BatchSettings
from thrifty.db import Database
from thrifty.db.desired import DesiredChange, read_desired, read_history, write_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.fleet import DeploymentSettings
from thrifty.db.keys import create_key, list_keys, revoke_key
from thrifty.db.spend import exchange_spend
from thrifty.db.tables import requests
from thrifty.errors import NameTakenError

BAD_IDS = ["%00", "file-%00", "a%00b", "%ed%a0%80", "%ff", "x" * 3000, "%0d%0aset-cookie:a", "..%2f..",
           "%e2%80%ae", "file-" + "0" * 28 + "%00", "%20"]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@contextlib.asynccontextmanager
async def serving(database: Database, folder: Path) -> AsyncIterator[GatewayUnderTest]:
    """A gateway that must go on, and whose database must count as available in the end."""
    url = database.url.render_as_string(hide_password=False)
    async with (
        running_echo() as echo,
        running_gateway(
            folder, [echo], database_url=url, batches=BatchSettings(), managed=True
        ) as gateway,
    ):
        yield gateway
        before = count_rows(database)
        chat = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await gateway.ask({**chat, "user": "ann\0\u2028"})).status == 200
        await until(lambda: count_rows(database) == before + 1)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_database_up") == 1


def count_rows(database: Database) -> int:
    query = (
        select(func.count()).select_from(requests).where(requests.c.end_user == "ann\ufffd\u2028")
    )
    with database.begin() as connection:
        return int(connection.execute(query).scalar_one())


async def test_ids_that_cannot_be_are_not_found(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path) as gateway:
        await check_ids(gateway)


async def check_ids(gateway: GatewayUnderTest) -> None:
    for ident in BAD_IDS:
        for method, path in (
            ("GET", f"/v1/files/{ident}"),
            ("DELETE", f"/v1/files/{ident}"),
            ("GET", f"/v1/files/{ident}/content"),
            ("GET", f"/v1/batches/{ident}"),
            ("POST", f"/v1/batches/{ident}/cancel"),
            ("GET", f"/v1/files?after={ident}"),
            ("GET", f"/v1/batches?after={ident}"),
            ("GET", f"/v1/models/{ident}"),
            ("DELETE", f"/api/v1/keys/{ident}"),
            ("GET", f"/api/v1/deployments/{ident}/traffic"),
        ):
            reply = await gateway.ask(b"", path, method=method)
            assert reply.status == 404, (method, path, reply.body)
            assert len(reply.body) < 2000
    for purpose in BAD_IDS:
        reply = await gateway.ask(b"", f"/v1/files?purpose={purpose}", method="GET")
        assert (reply.status, reply.json()["data"]) == (200, [])


async def test_purges_take_no_name_that_cannot_be(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path) as gateway:
        await check_purges(gateway)


async def check_purges(gateway: GatewayUnderTest) -> None:
    for value in ("%00", "a%00", "%0a", "%e2%80%ae", "x" * 129):
        for name in ("deployment", "version", "tenant"):
            reply = await gateway.ask(b"", f"/v1/cache?{name}={value}", method="DELETE")
            assert (reply.status, reply.error["code"]) == (400, "invalid_value")
    reply = await gateway.ask(b"", f"/v1/cache?tenant={'x' * 65}", method="DELETE")
    assert (reply.status, reply.error["param"]) == (400, "tenant")
    reply = await gateway.ask(b"", f"/v1/cache?version={'x' * 128}", method="DELETE")
    assert reply.status == 200


FILE_NAMES = [
    (b"in\0put.jsonl", "input.jsonl"),
    (b"\xff\xfe.jsonl", "\ufffd\ufffd.jsonl"),
    ("a\u202e\u2028\u0085.jsonl".encode(), "a.jsonl"),
    (b"x" * 5000, "x" * 255),
    (b"../../etc/passwd", "passwd"),
    (b"C:\\\\x\\\\y.jsonl", "y.jsonl"),
    ("Bücher 書.jsonl".encode(), "Bücher 書.jsonl"),
]


async def test_file_names_are_made_to_fit(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path) as gateway:
        for name, kept in FILE_NAMES:
            await check_file_name(gateway, name, kept)


async def check_file_name(gateway: GatewayUnderTest, name: bytes, kept: str) -> None:
    talk = Talk(gateway)
    form = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\nhello\r\n--b--\r\n'
    ) % name
    made = await talk.ask(
        "POST", "/v1/files", form, b"content-type: multipart/form-data; boundary=b\r\n"
    )
    assert made.status == 200, made.body
    assert made.json()["filename"] == kept
    reply = await talk.ask("GET", f"/v1/files/{made.json()['id']}/content")
    assert reply.body == b"hello"
    disposition = reply.headers[b"content-disposition"]
    assert disposition.isascii()
    assert disposition.startswith(b'attachment; filename="')
    assert disposition.count(b'"') == 2


async def test_a_batch_keeps_what_it_is_given(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path) as gateway:
        await check_batch(gateway)


async def check_batch(gateway: GatewayUnderTest) -> None:
    talk = Talk(gateway)
    metadata = {"a\0b": "\0\u2028", "emoji": "\U0001f600"}
    ids = ["\0", "a\nb", "\u2028", "\U0001f600", "x" * 512, '","error":{}']
    batch = await talk.create([make_line(one) for one in ids], metadata=metadata)
    assert batch["metadata"] == metadata
    ended = await talk.wait(batch["id"])
    output, errors = await talk.results(ended)
    assert sorted(record["custom_id"] for record in output) == sorted(ids)
    assert errors == []
    for field in ("input_file_id", "completion_window", "endpoint"):
        for value in ("\0", "24h\0", "x" * 100_000):
            body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/chat/completions",
                    "completion_window": "24h", field: value}  # fmt: skip
            reply = await talk.post("/v1/batches", body)
            assert reply.status in (400, 404), (field, reply.body)


SPEC: dict[str, Any] = {"name": "x", "engine": "echo"}


MANAGING: list[tuple[str, str, Any, int | tuple[int, ...]]] = [
    ("POST", "keys", {"name": "a\0b"}, 400),
    ("POST", "keys", {"name": "a\ud800"}, 400),
    ("POST", "keys", {"name": "ann", "tenant": "\0"}, 400),
    ("POST", "keys", {"name": "ann", "limits": {"rpm": 10**400}}, 400),
    ("POST", "keys", {"name": "ann", "limits": {"rpm": 10**30}}, 400),
    ("POST", "keys", {"name": "ann", "limits": {"budget_day": 1e308}}, 400),
    ("POST", "keys", {"name": "ann", "limits": {"budget_day": float("nan")}}, 400),
    ("POST", "keys", {"name": "ann", "x\ud800" * 200: 1}, 400),
    ("POST", "deployments/a%00b/rollback", {}, (400, 404)),
    ("POST", "deployments/gone/rollback", {"why": "\0"}, 404),
    ("PUT", "deployments/a%00/traffic", {"weights": {"a": 1}}, (400, 404)),
    ("PUT", "deployments/chat/traffic", {"weights": {"a\0": 1}}, 400),
    ("PUT", "deployments/chat/traffic", {"weights": {"a": 1e300}}, 400),
    ("POST", "plan", {"spec": {**SPEC, "name": "\ud800"}}, 400),
    ("POST", "plan", {"spec": {**SPEC, "name": "a\0"}}, 400),
    ("POST", "plan", {"spec": {**SPEC, "x\ud800": 1}}, 400),
    ("POST", "plan", {"spec": {**SPEC, "replicas": 10**60}}, 400),
]


async def test_the_management_api_refuses_what_cannot_be(
    database: Database, tmp_path: Path
) -> None:
    async with serving(database, tmp_path) as gateway:
        for method, path, body, status in MANAGING:
            reply = await gateway.ask(body, f"/api/v1/{path}", method=method)
            expected = status if isinstance(status, tuple) else (status,)
            assert reply.status in expected, (method, path, body, reply.body)
            assert len(reply.body) < 3000
            json.loads(reply.body)


def test_two_keys_of_one_name_conflict(database: Database) -> None:
    create_key(database, "taken")
    with pytest.raises(NameTakenError, match="already exists") as caught:
        create_key(database, "taken")
    assert to_wire_error(caught.value).status == 409
    revoke_key(database, "taken")
    assert [key.name for key in list_keys(database)] == []


VERSION = DesiredVersion("a", "m@v1", "echo", "r", None, {})


def test_the_history_takes_any_reason(database: Database) -> None:
    state = DesiredDeployment("chat", "decoder", DeploymentSettings(), (VERSION,))
    write_desired(
        database, [DesiredChange("chat", state)],
        read_change_id=read_desired(database).change_id, kind="apply", who="w\0" * 200,
        why="bad\0 \ud800 reason",
    )  # fmt: skip
    change = read_history(database, "chat", 1)[0]
    assert change.why == "bad\ufffd \ufffd reason"
    assert len(change.who) == 128


def test_spend_that_does_not_fit_holds_up_no_other(database: Database) -> None:
    huge = 1.7e308
    exchange_spend(database, {("k1", "2026-11-29"): huge}, "2026-11-01", 0.0)
    found = exchange_spend(
        database, {("k1", "2026-11-29"): huge, ("k2", "2026-11-29"): 2.0}, "2026-11-01", 0.0
    )
    assert found["k2", "2026-11-29"] == 2.0
