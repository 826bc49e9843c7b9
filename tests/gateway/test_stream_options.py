"""Stream options through the gateway: the same chunks from a replica, from a shared generation and from
the cache, and nothing that nobody asked for.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.parts import Reply, running_echo, running_gateway
from thrifty.openai.stream_options import PADDED_BYTES

CHAT: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": "The same question"}],
    "temperature": 0,
    "stream": True,
}
TOKENS = 17
COUNTED = {"include_usage": True}
CONTINUOUS = {"continuous_usage_stats": True}


def text_of(reply: Reply) -> str:
    choices = [choice for event in reply.events for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def check(reply: Reply, options: dict[str, bool] | None) -> None:
    """Whether a stream has what its options ask for, and no more."""
    asked = options or {}
    assert reply.status == 200
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert text_of(reply) == "The same question"
    chunks = reply.events
    if asked.get("include_usage"):
        last = chunks.pop()
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], TOKENS)
    assert all(chunk["choices"] for chunk in chunks)
    if asked.get("continuous_usage_stats"):
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == TOKENS
    elif asked.get("include_usage"):
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)
    padded = bool(asked.get("include_obfuscation"))
    assert [("obfuscation" in chunk) for chunk in chunks] == [padded] * len(chunks)
    if padded:
        sizes = [len(event) for event in reply.body.split(b"\n\n")[: len(chunks)]]
        assert len({size % PADDED_BYTES for size in sizes}) == 1


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        COUNTED,
        CONTINUOUS,
        {**COUNTED, **CONTINUOUS},
        {"include_obfuscation": False},
        {"include_obfuscation": True},
        {**COUNTED, "include_obfuscation": True},
    ],
)
async def test_options_hold_for_replicas_and_for_the_cache(
    tmp_path: Path, options: dict[str, bool] | None
) -> None:
    async with running_echo(tpot_s=0.001) as url, running_gateway(tmp_path, [url]) as gateway:
        body = {**CHAT, "stream_options": options}
        fresh = await gateway.ask(body)
        assert fresh.headers[b"x-thrifty-cache"] in (b"miss", b"bypass")
        check(fresh, options)
        await gateway.ask({**CHAT, "stream": False})
        for _ in range(2):
            hit = await gateway.ask(body)
            assert hit.headers[b"x-thrifty-cache"] == b"hit"
            check(hit, options)


async def test_requests_that_share_a_generation_get_what_each_asked_for(tmp_path: Path) -> None:
    async with (
        running_echo(ttft_s=0.2, tpot_s=0.005) as url,
        running_gateway(tmp_path, [url]) as gateway,
    ):
        for leader in (None, COUNTED):
            all_options = [leader, None, COUNTED, CONTINUOUS, {"include_obfuscation": True}]
            question = {**CHAT, "max_tokens": 50 + len(all_options[0] or {})}
            replies = await asyncio.gather(
                *(gateway.ask({**question, "stream_options": one}) for one in all_options)
            )
            for reply, options in zip(replies, all_options, strict=True):
                check(reply, options)
            caches = [reply.headers[b"x-thrifty-cache"] for reply in replies]
            assert caches == [b"miss", b"hit", b"hit", b"bypass", b"bypass"]


async def test_log_probabilities_are_cached_both_ways(tmp_path: Path) -> None:
    body = {"model": "echo", "prompt": "é!", "temperature": 0, "echo": True, "logprobs": 2}
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        for first, second in ((True, False), (False, True)):
            asked = {**body, "max_tokens": 5 + first}
            replies = [
                await gateway.ask({**asked, "stream": stream}, "/v1/completions")
                for stream in (first, second)
            ]
            assert replies[1].headers[b"x-thrifty-cache"] == b"hit"
            streamed, whole = replies if first else reversed(replies)
            parts = [event["choices"][0] for event in streamed.events]
            (choice,) = whole.json()["choices"]
            assert "".join(part["text"] for part in parts) == choice["text"] == "é!é!"
            for name, expected in choice["logprobs"].items():
                assert [one for part in parts for one in part["logprobs"][name]] == expected
            assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 2, 3, 4][: len(expected)]
