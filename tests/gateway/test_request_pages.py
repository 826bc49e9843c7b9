"""`GET /v1/requests` and `thrifty logs`: the request log, by who asks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from typer.testing import CliRunner

from tests.parts import (
    GatewayUnderTest,
    Reply,
    add_key,
    running_echo,
    running_gateway,
    until,
)
from thrifty.cli.app import app
from thrifty.db.secrets import ID_SECRET
from thrifty.db.tables import secrets
from thrifty.home import HOME_VARIABLE

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "user": "ann"}
PATH = "/v1/requests"


async def get(
    gateway: GatewayUnderTest, query: str = "", headers: dict[str, str] | None = None
) -> Reply:
    return await gateway.ask(b"", f"{PATH}{query}", method="GET", headers=headers)


async def logged(
    gateway: GatewayUnderTest, count: int, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The log's rows, once there are so many."""

    async def read() -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = (await get(gateway, "", headers)).json()["data"]
        return data if len(data) >= count else []

    return list(await until(read))


async def test_rows_are_found_by_what_they_are(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        first = await gateway.ask(CHAT | {"metadata": {"page": "home"}})
        await gateway.ask(CHAT | {"user": "bob"}, headers={"x-request-id": "mine-1"})
        await gateway.ask(CHAT | {"temperature": 9})
        rows = await logged(gateway, 3)
        assert [row["status"] for row in rows] == [400, 200, 200]
        ids = [row["id"] for row in rows]
        assert first.json()["id"] == f"chatcmpl-{ids[2]}"
        assert rows[2]["tags"] == {"page": "home"}
        await gateway.ask({"response_id": ids[1], "thumbs": "down"}, "/v1/feedback")

        async def find(query: str) -> list[str]:
            return [row["id"] for row in (await get(gateway, query)).json()["data"]]

        assert await find("?error=any") == [ids[0]]
        assert await find("?error=invalid_value") == [ids[0]]
        assert await find("?user=bob") == [ids[1]]
        assert await find(f"?id={first.json()['id']}") == [ids[2]]
        assert await find("?id=mine-1") == [ids[1]]
        assert await find("?id=nothing") == []
        assert await find("?disliked=true") == [ids[1]]
        assert await find("?version=echo@v1&model=echo") == ids[1:]
        assert await find("?slower_ms=3600000") == []
        assert await find(f"?conversation_id={rows[2]['conversation_id']}") == [ids[2]]
        assert await find(f"?since={rows[0]['created_at'] + 1:.3f}") == []
        page = (await get(gateway, "?limit=2")).json()
        assert (page["has_more"], page["last_id"]) == (True, ids[1])
        assert await find(f"?limit=2&after={page['last_id']}") == [ids[2]]
        for query in ("?disliked=1", "?slower_ms=x", "?since=x", "?limit=0", "?colour=red"):
            assert (await get(gateway, query)).status == 400, query
        for after in ("x", "0" * 20 + "9" * 400, "9" * 19):
            assert (await get(gateway, f"?after={after}")).status == 404
        assert "Hi" not in (await get(gateway)).body.decode(), "texts are not in it"


async def test_a_tenant_sees_its_own_rows(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        red, blue = await add_key(gateway, "red"), await add_key(gateway, "blue")
        admin = await add_key(gateway, "root", "admin")
        operator = await add_key(gateway, "op", "operator")
        theirs = (await gateway.ask(CHAT, headers=red)).json()["id"]
        await gateway.ask(CHAT, headers=blue)
        assert len(await logged(gateway, 2, admin)) == 2
        (row,) = (await get(gateway, "", red)).json()["data"]
        assert row["id"] in theirs
        assert (await get(gateway, f"?id={theirs}", blue)).json()["data"] == []
        assert (await get(gateway, f"?after={theirs}", blue)).status == 404
        assert (await get(gateway, "?tenant=red", blue)).status == 403
        assert (await get(gateway, "", operator)).json()["data"] == []
        assert len((await get(gateway, "?tenant=red", admin)).json()["data"]) == 1
        assert (await get(gateway, f"?id={theirs}", admin)).json()["data"] == [row]
        assert (await get(gateway)).status == 401
        viewer = await add_key(gateway, "eye", "viewer")
        assert (await get(gateway, "", viewer)).status == 403


async def test_logs_show_rows_one_request_and_new_ones(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], prompts=True) as gateway:
        # The commands find the secret of the ids where the controller puts it.
        secret = insert(secrets).values(name=ID_SECRET, value=(b"s" * 32).hex())
        with gateway.database.begin() as connection:
            connection.execute(secret)
        follower = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", "thrifty", "logs", "-f", "--json", "--limit", "0"],
            env={**os.environ, HOME_VARIABLE: str(tmp_path)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert follower.stdout is not None
            seen = asyncio.ensure_future(asyncio.to_thread(follower.stdout.readline))
            asked: list[str] = []
            while not seen.done():
                content = f"I am ann@example.com, turn {len(asked)}"
                body = CHAT | {"messages": [{"role": "user", "content": content}]}
                asked.append((await gateway.ask(body)).json()["id"])
                await asyncio.wait({seen}, timeout=1.0)
            assert f"chatcmpl-{json.loads(seen.result())['id']}" in asked
        finally:
            follower.terminate()
            await asyncio.to_thread(follower.communicate)
        await gateway.ask({"response_id": asked[0], "comment": "fine"}, "/v1/feedback")
        await logged(gateway, len(asked))

        def run(*arguments: str) -> str:
            home = {HOME_VARIABLE: str(tmp_path)}
            result = CliRunner().invoke(app, ["logs", *arguments], env=home)
            return result.stdout or str(result.exception)

        lines = (await asyncio.to_thread(run, "--json")).splitlines()
        assert f"chatcmpl-{json.loads(lines[0])['id']}" == asked[0]
        one = json.loads(await asyncio.to_thread(run, "--request", asked[0], "--json"))
        assert one["prompt"][0]["content"].startswith("I am <EMAIL_"), "redacted by default"
        assert one["feedback"][0]["text"] == "fine"
        shown = await asyncio.to_thread(run, "--request", asked[0])
        assert "feedback: comment: fine" in shown
        assert "turn 0" in shown
        assert asked[0].removeprefix("chatcmpl-") in await asyncio.to_thread(run)
        assert "record.keep" in await asyncio.to_thread(run, "--request", "nothing")
