"""Nothing that takes long runs on a model server's event loop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.parts import Reply, ask, find_longest_turn, running_echo
from thrifty.http.client import HttpClient

TEXT = "lorem ipsum dolor " * 150_000
MESSAGES = [{"role": "user", "content": TEXT}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 150_000}]


async def ask_beside_others(url: str, path: str, body: dict[str, Any]) -> tuple[Reply, float]:
    """The answer, and the share of its time for which others had to wait at most."""
    client = HttpClient()
    data = json.dumps({"model": "echo", **body}).encode()
    try:
        ticking = asyncio.create_task(find_longest_turn())
        began_s = time.perf_counter()
        reply = await ask(client, url, data, path)
        took_s = time.perf_counter() - began_s
        ticking.cancel()
        return reply, await ticking / took_s
    finally:
        client.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": TEXT}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/tokenize", {"prompt": TEXT[:300_000], "return_token_strs": True}),
        ("/tokenize", {"messages": PARTS}),
    ],
    ids=range(4),
)
async def test_others_are_answered_while_a_large_body_is_read(path: str, body: Any) -> None:
    async with running_echo() as url:
        reply, waited = await ask_beside_others(url, path, body)
    assert reply.status == 200
    assert waited < 0.4


async def test_what_takes_long_holds_up_only_its_like() -> None:
    """A body beyond 4 KB, and one with a schema, are read beside those of megabytes."""
    small = [
        ("/v1/completions", {"prompt": "x" * 5000, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3,
                                  "response_format": {"type": "text"}}),
    ]  # fmt: skip
    async with running_echo() as url:
        client = HttpClient()
        try:
            large = json.dumps({"model": "echo", "prompt": TEXT}).encode()
            long = [asyncio.create_task(ask(client, url, large, "/tokenize")) for _ in range(4)]
            await asyncio.sleep(0)
            for path, body in small * 3:
                data = json.dumps({"model": "echo", **body}).encode()
                assert (await ask(client, url, data, path)).status == 200
            assert not any(one.done() for one in long[1:])
            assert [(await one).status for one in long] == [200] * 4
        finally:
            client.close()


async def test_prompt_that_is_cut_is_the_end_of_a_large_one() -> None:
    async with running_echo() as url:
        for path, body in (
            ("/v1/completions", {"prompt": TEXT}),
            ("/v1/chat/completions", {"messages": MESSAGES}),
        ):
            reply, _ = await ask_beside_others(url, path, {**body, "truncate_prompt_tokens": 9})
            assert reply.status == 200
            assert reply.json()["usage"]["prompt_tokens"] == 9


async def test_prompt_that_cannot_fit_is_not_even_tokenized() -> None:
    async with running_echo(context_length=1000) as url:
        for path, body in (
            ("/v1/completions", {"prompt": TEXT}),
            ("/v1/chat/completions", {"messages": MESSAGES}),
        ):
            reply, _ = await ask_beside_others(url, path, body)
            error = reply.json()["error"]
            assert (reply.status, error["code"]) == (400, "context_length_exceeded")
            assert (
                f"has {len(TEXT)}" in error["message"] or f"has {len(TEXT) + 1}" in error["message"]
            )


async def test_small_and_large_requests_are_answered_alike() -> None:
    async with running_echo() as url:
        client = HttpClient()
        for size in (10, 5000):
            body = {"model": "echo", "prompt": "x" * size, "max_tokens": 3}
            reply = await ask(client, url, json.dumps(body).encode(), "/v1/completions")
            assert reply.json()["choices"][0]["text"] == "xxx"
            assert reply.json()["usage"]["prompt_tokens"] == size
        client.close()
