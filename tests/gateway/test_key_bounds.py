"""Keys that are bound to deployments, end by themselves, or get another secret."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.parts import GatewayUnderTest, running_echo, running_gateway
from thrifty.db.keys import Scope, create_key, rotate_key

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


async def make(gateway: GatewayUnderTest, name: str, **fields: Any) -> dict[str, str]:
    _, secret = await asyncio.to_thread(create_key, gateway.database, name, tenant="shop", **fields)
    await gateway.reader.refresh()
    return {"authorization": f"Bearer {secret}"}


async def test_a_bound_key_calls_its_deployments_and_knows_of_no_others(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        free = await make(gateway, "free")
        mine = await make(gateway, "mine", scope=Scope(("echo",)))
        other = await make(gateway, "other", scope=Scope(("elsewhere",)))
        for headers in (free, mine):
            assert (await gateway.ask(CHAT, headers=headers)).status == 200
        # The tenant's cached answer to the very same bytes is not for this key.
        again = await gateway.ask(CHAT, headers=free)
        assert again.headers[b"x-thrifty-cache"] == b"hit"
        for path in ("/v1/chat/completions", "/tokenize"):
            refused = await gateway.ask(CHAT, path, headers=other)
            assert (refused.status, refused.error["code"]) == (404, "model_not_found"), path
            assert "Models here: 'elsewhere'" in refused.error["message"]
        unknown = await gateway.ask(CHAT | {"model": "nothing"}, headers=other)
        assert "'echo'" not in unknown.error["message"]
        for headers, known in ((mine, ["echo"]), (other, [])):
            listed = await gateway.ask(b"", "/v1/models", method="GET", headers=headers)
            assert [one["id"] for one in listed.json()["data"]] == known
            shown = await gateway.ask(b"", "/v1/models/echo", method="GET", headers=headers)
            assert shown.status == (200 if known else 404)


async def test_a_key_ends_by_itself(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        headers = await make(gateway, "short", scope=Scope(expires_s=time.time() + 3600))
        assert (await gateway.ask(CHAT, headers=headers)).status == 200
        key = next(iter(gateway.table.keys.values()))
        object.__setattr__(key, "expires_s", time.time() - 1)
        refused = await gateway.ask(CHAT, headers=headers)
        assert (refused.status, refused.error["code"]) == (401, "expired_api_key")
        listed = await gateway.ask(b"", "/v1/models", method="GET", headers=headers)
        assert listed.status == 401


async def test_the_secret_of_before_is_good_for_as_long_as_was_said(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        old = await make(gateway, "app")
        for keep_s, status in ((600.0, 200), (0.0, 401)):
            _, secret = await asyncio.to_thread(rotate_key, gateway.database, "app", keep_s)
            await gateway.reader.refresh()
            new = {"authorization": f"Bearer {secret}"}
            assert (await gateway.ask(CHAT, headers=new)).status == 200
            assert (await gateway.ask(CHAT, headers=old)).status == status
            old = new
        assert (await gateway.ask(CHAT, headers=new)).status == 200
