"""Rankings through the gateway: answered, counted, cached, limited, logged, and in batches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.batches.talk import Talk, make_line
from tests.parts import GatewayUnderTest, echo_deployment, running_echo, running_gateway, until
from thrifty.batches.settings import BatchSettings
from thrifty.db.keys import KeyLimits, create_key
from thrifty.db.tables import requests
from thrifty.types import Family

RERANK = "/v1/rerank"
BODY: dict[str, Any] = {
    "model": "echo", "query": "capital of France",
    "documents": ["cats sleep", "the capital of France is Paris", "the capital of Japan"],
}  # fmt: skip


@contextlib.asynccontextmanager
async def serving(folder: Path, **more: Any) -> AsyncIterator[GatewayUnderTest]:
    row = replace(echo_deployment(), family=Family.RERANKER.value)
    async with (
        running_echo(family=Family.RERANKER) as url,
        running_gateway(folder, [url], deployment=row, **more) as gateway,
    ):
        yield gateway


def order(answer: dict[str, Any]) -> list[int]:
    return [one["index"] for one in answer["results"]]


async def test_a_ranking_is_answered_counted_and_logged(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        reply = await gateway.ask({**BODY, "return_documents": True}, RERANK)
        answer = reply.json()
        assert order(answer) == [1, 2, 0]
        scores = [one["relevance_score"] for one in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < one < 1 for one in scores)
        assert answer["results"][0]["document"] == {"text": BODY["documents"][1]}
        tokens = 3 * len(BODY["query"]) + sum(map(len, BODY["documents"]))
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}

        def read_log() -> Any:
            with gateway.database.begin() as connection:
                return connection.execute(select(requests)).one_or_none()

        await until(lambda: read_log() is not None)
        row = read_log()
        assert (row.endpoint, row.status, row.prompt_tokens) == (RERANK, 200, tokens)
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_requests_total", endpoint=RERANK, status="200") == 1


async def test_only_the_best_are_told_where_that_is_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        for top_n, count in ((1, 1), (2, 2), (9, 3), (None, 3)):
            reply = await gateway.ask({**BODY, "top_n": top_n}, RERANK)
            assert order(reply.json()) == [1, 2, 0][:count]
            assert "document" not in reply.json()["results"][0]


async def test_the_same_ranking_comes_from_the_cache(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        first = await gateway.ask({**BODY, "top_n": 2}, RERANK)
        again = await gateway.ask({**BODY, "top_n": 2, "user": "ann"}, RERANK)
        assert (again.headers[b"x-thrifty-cache"], again.json()) == (b"hit", first.json())
        other = await gateway.ask({**BODY, "documents": BODY["documents"][:2]}, RERANK)
        assert other.headers[b"x-thrifty-cache"] != b"hit"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"query": None}, "query", "missing_required_parameter"),
        ({"query": ""}, "query", "invalid_value"),
        ({"query": ["x"]}, "query", "invalid_value"),
        ({"documents": None}, "documents", "missing_required_parameter"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": "text"}, "documents", "invalid_value"),
        ({"documents": ["x", 5]}, "documents", "invalid_value"),
        ({"documents": [{"body": "x"}]}, "documents", "invalid_value"),
        ({"documents": ["x"] * 2049}, "documents", "invalid_value"),
        ({"documents": ["x" * 200_000]}, "documents", "context_length_exceeded"),
        ({"query": "x" * 200_000}, "query", "context_length_exceeded"),
        ({"query": "x" * 50, "truncate_prompt_tokens": 50}, "query", "context_length_exceeded"),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"top_n": "2"}, "top_n", "invalid_value"),
        ({"return_documents": 1}, "return_documents", "invalid_value"),
        ({"truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens", "invalid_value"),
        ({"input": "x"}, "input", "unknown_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
    ],
)
async def test_what_cannot_be_ranked_is_a_400_that_names_it(
    changes: dict[str, Any], param: str, code: str, tmp_path: Path
) -> None:
    async with serving(tmp_path) as gateway:
        reply = await gateway.ask({**BODY, **changes}, RERANK)
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)
        assert len(reply.error["message"]) < 500
        assert (await gateway.ask(BODY, RERANK)).status == 200


async def test_other_families_say_what_they_answer(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        error = (await gateway.ask(BODY, RERANK)).error
        assert error["code"] == "wrong_model_family"
        assert "a decoder; it answers /v1/chat/completions and /v1/completions" in error["message"]
    async with serving(tmp_path / "other") as gateway:
        for path, body in (
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/completions", {"prompt": "x"}),
        ):
            error = (await gateway.ask({"model": "echo", **body}, path)).error
            assert error["code"] == "wrong_model_family"
            assert "a reranker; it answers /v1/rerank" in error["message"]


async def test_a_long_document_is_cut_where_that_is_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        body = {**BODY, "documents": ["x " * 100_000, "capital of France"]}
        reply = await gateway.ask({**body, "truncate_prompt_tokens": 40}, RERANK)
        assert order(reply.json()) == [1, 0]
        whole = len(BODY["query"]) + len("capital of France")
        assert reply.json()["usage"]["prompt_tokens"] == 40 + whole


async def test_keys_limits_hold_for_rankings(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        _, secret = create_key(gateway.database, "r", tenant="red", limits=KeyLimits(tpm=200))
        await gateway.reader.refresh()
        headers = {"authorization": f"Bearer {secret}", "cache-control": "no-store"}
        statuses = [(await gateway.ask(BODY, RERANK, headers=headers)).status for _ in range(4)]
        assert statuses[0] == 200
        assert statuses[-1] == 429


async def test_lines_of_batches_are_ranked(tmp_path: Path) -> None:
    async with serving(tmp_path, batches=BatchSettings()) as gateway:
        talk = Talk(gateway)
        lines = [make_line(str(n), url=RERANK) for n in range(3)]
        for line in lines:
            line["body"] = BODY
        ended = await talk.wait((await talk.create(lines, endpoint=RERANK))["id"])
        assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        output, _ = await talk.results(ended)
        assert [order(one["response"]["body"]) for one in output] == [[1, 2, 0]] * 3
