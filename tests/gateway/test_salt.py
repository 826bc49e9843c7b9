"""Fields that the gateway adds to requests: salts per tenant, and priorities of batch lines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.parts import echo_deployment, make_deployment, running_gateway, running_server
from thrifty.db.fleet import save_deployment
from thrifty.db.keys import create_key
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.http.server import Exchange
from thrifty.spec import Spec

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


async def test_each_tenant_gets_a_salt_that_no_other_can_choose(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(exchange: Exchange) -> None:
        bodies.append(json.loads(exchange.body))
        exchange.respond(200, b'{"id":"x-1","object":"chat.completion","choices":[]}')

    row = make_deployment(engine="remote", label="remote@1", salt_field="cache_salt")
    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        await gateway.ask(CHAT)
        assert "cache_salt" not in bodies[0]
        keys = {}
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            _, secret = await asyncio.to_thread(create_key, gateway.database, name, "user", tenant)
            keys[name] = {"authorization": f"Bearer {secret}"}
        await gateway.reader.refresh()
        salts = []
        for name in ("a1", "a2", "b1"):
            await gateway.ask(CHAT, headers=keys[name])
            salts.append(bodies[-1]["cache_salt"])
        assert salts[0] == salts[1] != salts[2]
        assert len(salts[0]) == 32
        # A client that sends another tenant's salt gets a third one.
        await gateway.ask({**CHAT, "cache_salt": salts[0]}, headers=keys["b1"])
        assert bodies[-1]["cache_salt"] not in salts
        assert bodies[-1]["messages"] == CHAT["messages"]


async def test_another_key_of_the_same_servers_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLD_KEY", "old")
    monkeypatch.setenv("NEW_KEY", "new")
    sent: list[bytes | None] = []

    def answer(exchange: Exchange) -> None:
        sent.append(exchange.headers.get(b"authorization"))
        exchange.respond(200, b'{"id":"x-1","object":"chat.completion","choices":[]}')

    row = make_deployment(engine="remote", label="remote@1", key_env="OLD_KEY")
    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        await gateway.ask(CHAT)
        changed = make_deployment(engine="remote", label="remote@1", key_env="NEW_KEY")
        await asyncio.to_thread(save_deployment, gateway.database, changed)
        await gateway.reader.refresh()
        await gateway.ask(CHAT)
        none = make_deployment(engine="remote", label="remote@1")
        await asyncio.to_thread(save_deployment, gateway.database, none)
        await gateway.reader.refresh()
        await gateway.ask(CHAT)
    assert sent == [b"Bearer old", b"Bearer new", None]


async def test_engines_without_a_salt_are_not_sent_one(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(exchange: Exchange) -> None:
        bodies.append(json.loads(exchange.body))
        exchange.respond(200, b'{"choices": []}')

    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=echo_deployment()) as gateway,
    ):
        _, secret = await asyncio.to_thread(create_key, gateway.database, "ann")
        await gateway.reader.refresh()
        await gateway.ask(CHAT, headers={"authorization": f"Bearer {secret}"})
        assert bodies == [CHAT]


def test_every_engine_declares_its_salt_field() -> None:
    for kind in engine_kinds():
        assert find_engine(kind).traits.salt_field in (None, "cache_salt")


def test_remote_servers_get_the_field_that_the_spec_names() -> None:
    engine = find_engine("remote")
    spec = Spec.model_validate(
        {"engine": {"kind": "remote", "urls": ["http://x"], "salt_field": "cache_salt"}}
    )
    served = engine.prepare(spec, None, None, None, lambda _: None)  # type: ignore[arg-type]
    assert served.upstream.salt_field == "cache_salt"


def test_priorities_are_sent_to_engines_that_support_them() -> None:
    traits = find_engine("openvino").traits
    assert traits.priority_field in (traits.honours or ())
    spec = Spec.model_validate(
        {"engine": {"kind": "remote", "urls": ["http://x"], "priority_field": "priority"}}
    )
    served = find_engine("remote").prepare(spec, None, None, None, lambda _: None)  # type: ignore[arg-type]
    assert served.upstream.priority_field == "priority"


def test_priorities_are_not_sent_to_other_engines() -> None:
    """Otherwise lines would stay at the replica and delay interactive requests."""
    traits = find_engine("echo").traits
    assert traits.priority_field is None
    assert "priority" not in (traits.honours or ())
