"""A request through the gateway: its response and its records."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import select

from tests.parts import (
    echo_deployment,
    replica_row,
    running_echo,
    running_gateway,
)
from thrifty.bench.client import Target, send_request
from thrifty.bench.workload import PlannedRequest
from thrifty.db.fleet import VersionRow
from thrifty.db.tables import requests
from thrifty.http.origin import parse_origin

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}


@pytest.mark.parametrize(
    ("method", "path", "there"),
    [
        ("GET", "/v1/models/", "/v1/models"),
        ("GET", "//v1//models", "/v1/models"),
        ("GET", "/v1/models/echo/", "/v1/models/echo"),
        ("POST", "//v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/?a=b//", "/v1/chat/completions?a=b//"),
        ("GET", "//metrics/", "/metrics"),
    ],
)
async def test_needless_slashes_are_redirected(
    tmp_path: Path, method: str, path: str, there: str
) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask(b"{}", path, method=method)
        assert (reply.status, reply.headers[b"location"]) == (308, there.encode())
        assert reply.error["code"] == "moved"


@pytest.mark.parametrize(
    "path", ["/", "//", "//evil.example/", "/v1/v1/models", "/v1//", "/v1/models/%0d%0aa:b"]
)
async def test_other_paths_are_not_found(tmp_path: Path, path: str) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask(b"", path, method="GET")
        assert reply.status == 404
        assert b"location" not in reply.headers


@pytest.mark.parametrize("name", ["org/model", "llama3.2:1b", "a/b:c", "x" * 64])
async def test_a_name_may_hold_slashes_and_colons(tmp_path: Path, name: str) -> None:
    row = echo_deployment(name, aliases=("one/more:1",))
    async with (
        running_echo(name) as url,
        running_gateway(tmp_path, [url], deployment=row) as gateway,
    ):
        for known in (name, "one/more:1"):
            for shown in (known, quote(known, safe="")):
                reply = await gateway.ask(b"", f"/v1/models/{shown}", method="GET")
                assert (reply.status, reply.json()["id"]) == (200, known)
            chat = {"model": known, "messages": [{"role": "user", "content": "Hi"}]}
            reply = await gateway.ask({**chat, "temperature": 0})
            assert reply.status == 200
            # An alias is the same deployment.
            assert (reply.headers[b"x-thrifty-cache"] == b"hit") is (known != name)
        listed = await gateway.ask(b"", "/v1/models", method="GET")
        assert {one["id"] for one in listed.json()["data"]} == {name, "one/more:1"}
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        assert metrics.metric("thrifty_requests_total", deployment=name) >= 1
        reply = await gateway.ask(
            b"", f"/v1/cache?deployment={quote(name, safe='')}", method="DELETE"
        )
        assert reply.json()["deployment"] == name


async def test_an_answer_names_its_version_and_replica(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask(CHAT)
        assert reply.status == 200
        assert reply.json()["choices"][0]["message"]["content"] == "Hello there"
        assert reply.headers[b"x-thrifty-cache"] == b"bypass"
        assert reply.headers[b"x-thrifty-replica"] == b"echo-0"
        assert reply.headers[b"x-thrifty-version"] == b"echo@v1"
        response_id = reply.headers[b"x-thrifty-response-id"].decode()
        assert reply.json()["id"] == f"chatcmpl-{response_id}"
        assert reply.headers[b"x-request-id"].decode() == response_id
        assert reply.headers[b"x-thrifty-conversation"].startswith(b"conv-")


async def test_models_say_how_long_a_request_may_be(tmp_path: Path) -> None:
    """The least of the versions with traffic, and of what each version's replicas hold."""
    settings = echo_deployment().versions[0].settings
    versions = tuple(
        VersionRow(label, label, "echo", "r1", weight=weight,
                   settings=dataclasses.replace(settings, context_length=length))
        for label, weight, length in (("a", 1.0, 8000), ("b", 1.0, 4000), ("c", 0.0, 100), ("d", 1.0, None))
    )  # fmt: skip
    row = dataclasses.replace(echo_deployment(), versions=versions)
    async with running_echo() as url, running_gateway(tmp_path, [url], deployment=row) as gateway:
        for path in ("/v1/models", "/v1/models/echo"):
            shown = (await gateway.ask(b"", path, method="GET")).json()
            model = shown["data"][0] if path == "/v1/models" else shown
            assert model["max_model_len"] == 4000
            assert [v["max_model_len"] for v in model["versions"]] == [8000, 4000, 100, None]
        load = {"facts": {"context_length": 3000}}
        await gateway.set_replicas([replica_row(0, url, version="a", load=load)])
        shown = (await gateway.ask(b"", "/v1/models/echo", method="GET")).json()
        assert shown["max_model_len"] == 3000
        assert shown["versions"][0]["max_model_len"] == 3000


async def test_a_valid_client_request_id_is_kept(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        kept = await gateway.ask(CHAT, headers={"x-request-id": "mine-7"})
        assert kept.headers[b"x-request-id"] == b"mine-7"
        long = await gateway.ask(CHAT, headers={"x-request-id": "x" * 65})
        assert long.headers[b"x-request-id"] == long.headers[b"x-thrifty-response-id"]


async def test_stream_passes_through_without_usage_unless_asked(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        plain = await gateway.ask({**CHAT, "stream": True})
        assert plain.headers[b"content-type"].startswith(b"text/event-stream")
        assert plain.body.endswith(b"data: [DONE]\n\n")
        assert not any(event.get("usage") for event in plain.events)
        asked = await gateway.ask(
            {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        )
        assert asked.events[-1]["usage"]["completion_tokens"] == len("Hello there")
        assert asked.events[-1]["choices"] == []


async def test_each_request_becomes_a_row(tmp_path: Path) -> None:
    async with running_echo(tpot_s=0.002) as url, running_gateway(tmp_path, [url]) as gateway:
        await gateway.ask({**CHAT, "stream": True, "user": "ann"})
        await gateway.ask({**CHAT, "temperature": 9})
        await gateway.ask({**CHAT, "safety_identifier": "bob", "store": False})
        await gateway.line.stop()
        with gateway.database.begin() as connection:
            good, bad, newer = (
                connection.execute(select(requests).order_by(requests.c.id)).mappings().all()
            )
        assert (good["status"], good["replica"], good["stream"]) == (200, "echo-0", True)
        assert (good["end_user"], newer["end_user"], newer["status"]) == ("ann", "bob", 200)
        assert good["completion_tokens"] == len("Hello there")
        assert 0 < good["ttft_ms"] < good["e2e_ms"]
        assert 1 < good["tpot_ms"] < 50
        assert 0 < good["overhead_us"] < 1e6
        assert (bad["status"], bad["error"], bad["replica"]) == (400, "invalid_value", None)


async def test_metrics_carry_deployment_version_and_replica(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        # Only of a stream can the first token be seen.
        await gateway.ask({**CHAT, "stream": True})
        await gateway.ask({**CHAT, "model": "other"})
        metrics = await gateway.ask(b"", "/metrics", method="GET")
        labels = {"deployment": "echo", "version": "echo@v1", "replica": "echo-0"}
        endpoint = "/v1/chat/completions"
        assert (
            metrics.metric("thrifty_requests_total", **labels, endpoint=endpoint, status="200") == 1
        )
        for name in ("ttft", "e2e", "queue", "gateway_overhead"):
            assert metrics.metric(f"thrifty_{name}_seconds_count", **labels) == 1, name
        assert metrics.metric("thrifty_completion_tokens_total", **labels) == 11
        assert metrics.metric("thrifty_prompt_tokens_total", **labels) == 12
        assert metrics.metric("thrifty_replica_up", **labels) == 1
        assert metrics.metric("thrifty_errors_total", kind="model_not_found") == 1


async def test_prompts_are_recorded_only_if_enabled(tmp_path: Path) -> None:
    from thrifty.db.tables import request_texts

    for prompts in (False, True):
        folder = tmp_path / str(prompts)
        folder.mkdir()
        async with (
            running_echo() as url,
            running_gateway(folder, [url], prompts=prompts) as gateway,
        ):
            await gateway.ask({**CHAT, "stream": True})
            await gateway.ask(CHAT)
            await gateway.line.stop()
            with gateway.database.begin() as connection:
                rows = connection.execute(select(request_texts)).mappings().all()
            assert len(rows) == (2 if prompts else 0)
            for row in rows:
                assert json.loads(row["prompt"]) == CHAT["messages"]
                assert row["answer"] == "Hello there"


async def test_models_and_health(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        models = (await gateway.ask(b"", "/v1/models", method="GET")).json()
        assert [model["id"] for model in models["data"]] == ["echo"]
        one = await gateway.ask(b"", "/v1/models/echo", method="GET")
        assert one.json()["version"] == "echo@v1"
        none = await gateway.ask(b"", "/v1/models/none", method="GET")
        assert none.status == 404
        assert "Models here: 'echo'" in none.error["message"]
        assert (await gateway.ask(b"", "/healthz", method="GET")).status == 200
        assert (await gateway.ask(b"", "/readyz", method="GET")).json()["status"] == "ready"


async def test_readiness_waits_for_a_replica(tmp_path: Path) -> None:
    from tests.parts import replica_row

    async with running_echo() as url, running_gateway(tmp_path, []) as gateway:
        reply = await gateway.ask(b"", "/readyz", method="GET")
        assert reply.status == 503
        assert reply.json()["waiting_for"] == ["echo"]
        assert "reason" not in reply.json()
        await gateway.set_replicas([replica_row(0, url)])
        assert (await gateway.ask(b"", "/readyz", method="GET")).status == 200


async def test_tokenize_needs_no_model_name_where_there_is_one(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask({"prompt": "abc"}, "/tokenize")
        assert reply.json()["tokens"] == [97, 98, 99]


async def test_embeddings_go_through(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        reply = await gateway.ask({"model": "echo", "input": "abc"}, "/v1/embeddings")
        assert reply.status == 400
        assert reply.error["code"] == "wrong_model_family"


async def test_the_wrong_family_is_told_before_fields_are_judged(tmp_path: Path) -> None:
    """Without the field, which clients add by themselves, there would be no answer, either."""
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        body = {"model": "echo", "input": "abc", "encoding_format": "base64", "dimensions": 4}
        reply = await gateway.ask(body, "/v1/embeddings")
        assert (reply.status, reply.error["code"]) == (400, "wrong_model_family")


async def test_measurements_get_no_answer_from_the_cache(tmp_path: Path) -> None:
    """The exact cache would tell how fast it is, and not the model."""
    async with running_echo(ttft_s=0.2) as url, running_gateway(tmp_path, [url]) as gateway:
        target = Target(parse_origin(gateway.url), "echo", is_measurement=True)
        for _ in range(2):
            sample = await send_request(gateway.client, target, PlannedRequest("the same", 4))
            assert sample.error is None
            assert sample.ttft_s >= 0.2


async def test_large_body_is_read_while_others_are_answered(tmp_path: Path) -> None:
    """Most of the time that it takes to read one is spent in Python, beside the event loop."""
    body = b'{"model": "echo", "prompt": [%b]}' % b",".join([b"[1]"] * 1_000_000)
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        large = asyncio.create_task(
            gateway.ask(body, "/v1/completions", headers={"x-request-id": "mine"})
        )
        answered = 0
        while not large.done():
            assert (await gateway.ask(CHAT)).status == 200
            answered += 1
        reply = await large
        assert answered >= 5
        assert reply.status == 400
        assert "at most 2048 answers" in reply.json()["error"]["message"]
        assert reply.headers[b"x-request-id"] == b"mine"
        assert reply.headers[b"x-thrifty-version"] == b"echo@v1"
