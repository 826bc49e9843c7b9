"""Keys: who may call, what a wrong key gets, and authentication without a database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.parts import GatewayUnderTest, running_echo, running_gateway
from thrifty.db.keys import PREFIX, KeyLimits, create_key, hash_key, list_keys, revoke_key
from thrifty.db.tables import keys as keys_table
from thrifty.errors import ThriftyError

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}


async def make_key(gateway: GatewayUnderTest, name: str, role: str = "user") -> str:
    _, secret = await asyncio.to_thread(create_key, gateway.database, name, role)
    return secret


async def test_without_any_key_the_gateway_is_open(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        assert (await gateway.ask(CHAT)).status == 200
        assert (await gateway.ask(CHAT, headers={"authorization": "Bearer sk-any"})).status == 200


async def test_with_a_key_every_request_needs_one(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        secret = await make_key(gateway, "ann")
        await gateway.reader.refresh()
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
            reply = await gateway.ask(CHAT, path)
            assert reply.status == 401, path
            assert reply.error["code"] == "missing_api_key"
            assert "thrifty keys create" in reply.error["message"]
        wrong = await gateway.ask(CHAT, headers={"authorization": "Bearer sk-wrong-key-here"})
        assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
        assert "sk-wrong-key-here" not in wrong.body.decode()
        good = await gateway.ask(CHAT, headers={"authorization": f"Bearer {secret}"})
        assert good.status == 200
        assert (await gateway.ask(b"", "/v1/models", method="GET")).status == 401
        assert (await gateway.ask(b"", "/healthz", method="GET")).status == 200


async def test_a_new_key_works_at_once(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await make_key(gateway, "first")
        await gateway.reader.refresh()
        secret = await make_key(gateway, "second")
        reply = await gateway.ask(CHAT, headers={"authorization": f"Bearer {secret}"})
        assert reply.status == 200


async def test_the_first_key_takes_effect_at_once(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        stale = {"authorization": f"Bearer {PREFIX}{'0' * 43}"}
        assert (await gateway.ask(CHAT, headers=stale)).status == 200, "open, without any key"
        _, secret = await asyncio.to_thread(
            create_key, gateway.database, "first", limits=KeyLimits(rpm=1)
        )
        mine = {"authorization": f"Bearer {secret}"}
        statuses = [(await gateway.ask(CHAT, headers=mine)).status for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert (await gateway.ask(CHAT, headers=stale)).status == 401


async def test_a_revoked_key_is_refused(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        await make_key(gateway, "keeper")
        secret = await make_key(gateway, "ann")
        await gateway.reader.refresh()
        headers = {"authorization": f"Bearer {secret}"}
        assert (await gateway.ask(CHAT, headers=headers)).status == 200
        await asyncio.to_thread(revoke_key, gateway.database, "ann")
        for _ in range(100):
            if (await gateway.ask(CHAT, headers=headers)).status == 401:
                break
            await asyncio.sleep(0.02)
        assert (await gateway.ask(CHAT, headers=headers)).status == 401


async def test_revoking_the_last_key_does_not_disable_authentication(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        secret = await make_key(gateway, "only")
        await gateway.reader.refresh()
        assert (await gateway.ask(CHAT)).status == 401
        await asyncio.to_thread(revoke_key, gateway.database, "only")
        await asyncio.sleep(0.3)
        assert (await gateway.ask(CHAT)).status == 401
        reply = await gateway.ask(CHAT, headers={"authorization": f"Bearer {secret}"})
        assert reply.status == 401


@pytest.mark.parametrize(
    ("role", "chat", "metrics"),
    [("user", 200, 403), ("viewer", 403, 200), ("monitor", 403, 200), ("admin", 200, 200)],
)
async def test_roles_allow_their_endpoints(
    tmp_path: Path, role: str, chat: int, metrics: int
) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        secret = await make_key(gateway, "k", role)
        await gateway.reader.refresh()
        headers = {"authorization": f"bearer {secret}"}
        assert (await gateway.ask(CHAT, headers=headers)).status == chat
        reply = await gateway.ask(b"", "/metrics", method="GET", headers=headers)
        assert reply.status == metrics


async def test_only_hashes_of_keys_are_stored(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        secret = await make_key(gateway, "ann")
        assert secret.startswith(PREFIX)
        assert len(secret) > 50
        with gateway.database.begin() as connection:
            row = connection.execute(select(keys_table)).mappings().one()
        assert row["hash"] == hash_key(secret)
        assert secret not in str(dict(row))
        for file in tmp_path.iterdir():
            assert secret.encode() not in file.read_bytes(), file


async def test_the_clients_key_does_not_reach_the_replica(tmp_path: Path) -> None:
    from tests.parts import running_server
    from thrifty.http.server import Exchange

    seen: list[dict[bytes, bytes]] = []

    async def upstream(exchange: Exchange) -> None:
        seen.append(exchange.headers)
        exchange.respond(200, b'{"id":"x","choices":[]}')

    async with running_server(upstream) as (url, _), running_gateway(tmp_path, [url]) as gateway:
        secret = await make_key(gateway, "ann")
        await gateway.reader.refresh()
        await gateway.ask(CHAT, headers={"authorization": f"Bearer {secret}"})
        assert b"authorization" not in seen[0]
        assert b"x-request-id" in seen[0]


def test_names_and_roles_are_checked(tmp_path: Path) -> None:
    from thrifty.db import open_database

    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    with pytest.raises(ThriftyError, match="not a valid name"):
        create_key(database, "a b")
    with pytest.raises(
        ThriftyError, match="'boss' is not a role; roles are viewer, user, operator, admin"
    ):
        create_key(database, "ann", "boss")
    create_key(database, "ann")
    with pytest.raises(ThriftyError, match="thrifty keys revoke ann"):
        create_key(database, "ann")
    revoke_key(database, "ann")
    create_key(database, "ann")
    assert [key.name for key in list_keys(database)] == ["ann"]
    with pytest.raises(ThriftyError, match="no key named 'bob'"):
        revoke_key(database, "bob")
    database.close()
