"""Running batches: every line once, yielding, ending, handover."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.batches.talk import Talk, make_line, text_of
from tests.parts import (
    JSON_HEADER,
    GatewayUnderTest,
    echo_deployment,
    make_deployment,
    replica_row,
    running_echo,
    running_gateway,
    running_server,
)
from thrifty.batches.governor import GovernorSettings
from thrifty.batches.settings import BatchSettings
from thrifty.db.batches import BatchRow, find_batch
from thrifty.db.fleet import GatewayRow, save_gateway
from thrifty.db.keys import create_key, revoke_key
from thrifty.http.origin import parse_origin
from thrifty.http.server import Exchange
from thrifty.openai.conversations import Conversations

SETTINGS = BatchSettings()
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}


async def metric(gateway: GatewayUnderTest, name: str, **labels: str) -> float:
    return (await gateway.ask(b"", "/metrics", method="GET")).metric(name, **labels)


async def load_of(url: str) -> dict[str, Any]:
    from thrifty.http.client import HttpClient

    client = HttpClient()
    try:
        return json.loads((await client.fetch(f"{url}/load"))[1])
    finally:
        client.close()


async def test_every_line_gets_one_record(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        lines: list[Any] = [make_line(f"c{i}", f"line {i}") for i in range(300)]
        lines[10:10] = [
            b"{nonsense",
            b"",
            make_line("c3", "used before"),
            make_line("m", body={"model": "gpt-9"}),
            make_line("t", body={"temperature": 7}),
            make_line("l", body={"logit_bias": {"5": 1}}),
            make_line("n", body={"messages": None}),
            make_line(None),
        ]
        batch = await talk.create(lines, metadata={"job": "7"})
        assert (batch["object"], batch["status"]) == ("batch", "validating")
        ended = await talk.wait(batch["id"])
        assert ended["status"] == "completed"
        assert ended["request_counts"] == {"total": 307, "completed": 300, "failed": 7}
        assert ended["metadata"] == {"job": "7"}
        for name in ("in_progress_at", "finalizing_at", "completed_at"):
            assert ended[name] >= ended["created_at"]
        assert ended["expires_at"] - ended["created_at"] == pytest.approx(86400, abs=1)
        output, errors = await talk.results(ended)
        assert {r["custom_id"]: text_of(r) for r in output} == {
            f"c{i}": f"line {i}" for i in range(300)
        }
        assert len(output) == 300
        assert {r["response"]["status_code"] for r in output} == {200}
        told = {r["custom_id"]: r for r in errors if r["response"] is None}
        assert {c: r["error"]["code"] for c, r in told.items()} == {
            None: told[None]["error"]["code"], "c3": "duplicate_custom_id",
        }  # fmt: skip
        codes = {
            r["custom_id"]: (r["response"]["status_code"], r["response"]["body"]["error"]["code"])
            for r in errors
            if r["response"] is not None
        }
        assert codes == {
            "m": (404, "model_not_found"),
            "t": (400, "invalid_value"),
            "l": (400, "unsupported_parameter"),
            "n": (400, "missing_required_parameter"),
        }
        assert len(errors) == 7
        tokens = sum(r["response"]["body"]["usage"]["total_tokens"] for r in output)
        assert ended["usage"]["total_tokens"] == tokens
        files = {f["id"]: f for f in (await talk.ask("GET", "/v1/files")).json()["data"]}
        assert files[ended["output_file_id"]]["purpose"] == "batch_output"
        assert await metric(gateway, "thrifty_batch_lines_total", result="200") == 300
        # Interactive metrics are not mixed with those of batches.
        assert await metric(gateway, "thrifty_e2e_seconds_count") == 0
        assert await metric(gateway, "thrifty_requests_total", status="200") == 300


@pytest.mark.parametrize(
    ("lines", "settings", "code"),
    [
        ([], SETTINGS, "empty_file"),
        ([b"", b"   "], SETTINGS, "empty_file"),
        ([make_line(str(i)) for i in range(4)], BatchSettings(max_lines=3), "too_many_lines"),
    ],
)
async def test_an_invalid_input_file_fails_the_batch(
    tmp_path: Path, lines: list[Any], settings: BatchSettings, code: str
) -> None:
    async with running_gateway(tmp_path, [], batches=settings) as gateway:
        talk = Talk(gateway)
        ended = await talk.wait((await talk.create(lines))["id"])
        assert ended["status"] == "failed"
        assert ended["failed_at"] is not None
        assert [e["code"] for e in ended["errors"]["data"]] == [code]
        assert (ended["output_file_id"], ended["error_file_id"]) == (None, None)


async def test_an_input_lost_from_the_disk_fails_the_batch(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        file = (await talk.upload(b"{}")).json()["id"]
        (tmp_path / "files" / file).unlink()
        body = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "1h"}
        batch = (await talk.post("/v1/batches", body)).json()
        ended = await talk.wait(batch["id"])
        assert [e["code"] for e in ended["errors"]["data"]] == ["input_file_missing"]


async def test_lines_use_the_cache(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        await gateway.ask({**CHAT, "temperature": 0})
        line = make_line("a", "Hello there", body={"temperature": 0})
        ended = await talk.wait((await talk.create([line]))["id"])
        assert ended["request_counts"]["completed"] == 1
        assert await metric(gateway, "thrifty_cache_requests_total", result="hit") == 1


@pytest.mark.slow
async def test_lines_fill_the_slots_and_no_more(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=5)
    async with (
        running_echo(ttft_s=0.1, slots=5) as one,
        running_echo(ttft_s=0.1, slots=5) as two,
        running_gateway(tmp_path, [one, two], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        batch = await talk.create([make_line(str(i), str(i)) for i in range(100)])
        await talk.wait(batch["id"], "in_progress")
        seen, waiting = [], [0, 0]
        while (await talk.batch(batch["id"]))["status"] == "in_progress":
            loads = [await load_of(one), await load_of(two)]
            seen.append([load["running"] for load in loads])
            # An answer may end a moment before its slot is free.
            before, waiting = waiting, [load["waiting"] for load in loads]
            assert all(min(pair) == 0 for pair in zip(before, waiting, strict=True))
            await asyncio.sleep(0.02)
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"]["completed"] == 100
        # Every slot at both replicas was used, and lines were not sent one by one (10 s).
        assert max(min(pair) for pair in seen) == 5


@pytest.mark.slow
async def test_interactive_requests_take_slots_at_once(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=4)
    settings = BatchSettings(governor=GovernorSettings(settle_s=0.2))
    async with (
        running_echo(ttft_s=0.3, slots=4) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=settings) as gateway,
    ):
        talk = Talk(gateway)
        batch = await talk.create([make_line(str(i), str(i)) for i in range(24)])

        async def wait_running(count: int) -> None:
            while (await load_of(url))["running"] < count:
                await asyncio.sleep(0.005)

        await wait_running(4)
        # All slots are taken by lines, which are requeued.
        replies = await asyncio.gather(*(gateway.ask(CHAT) for _ in range(3)))
        assert {reply.status for reply in replies} == {200}
        assert await metric(gateway, "thrifty_batch_lines_total", result="withdrawn") >= 3
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"] == {"total": 24, "completed": 24, "failed": 0}
        output, errors = await talk.results(ended)
        assert sorted(int(r["custom_id"]) for r in output) == list(range(24))
        assert errors == []
        # Withdrawn lines do not count as failed.
        assert await metric(gateway, "thrifty_errors_total", kind="replica_lost") == 0


async def test_an_engine_with_priorities_keeps_running_lines(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        body = json.loads(exchange.body)
        bodies.append(body)
        if body.get("priority"):
            await go_on.wait()
        exchange.respond(200, b'{"id":"x","object":"chat.completion","choices":[]}')

    row = make_deployment(
        engine="remote", label="remote@1", batch_slots=4, priority_field="priority"
    )
    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        batch = await talk.create([make_line(str(i), str(i)) for i in range(12)])
        while len(bodies) < 4:
            await asyncio.sleep(0.005)
        for _ in range(3):
            assert (await gateway.ask(CHAT)).status == 200
        assert [body.get("priority") for body in bodies] == [1] * 4 + [None] * 3
        assert await metric(gateway, "thrifty_batch_lines_total", result="withdrawn") == 0
        go_on.set()
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        assert len(bodies) == 15


@pytest.mark.slow
async def test_no_lines_are_sent_to_a_full_replica(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=2)
    async with (
        running_echo(ttft_s=3.0, slots=2) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        asking = [asyncio.ensure_future(gateway.ask(CHAT)) for _ in range(2)]
        while (await load_of(url))["running"] < 2:
            await asyncio.sleep(0.005)
        batch = await talk.create([make_line("a", "x")])
        await talk.wait(batch["id"], "in_progress")
        load = await load_of(url)
        assert (load["running"], load["waiting"]) == (2, 0)
        assert (await talk.batch(batch["id"]))["request_counts"]["completed"] == 0
        assert not any(task.done() for task in asking)
        await asyncio.gather(*asking)
        assert (await talk.wait(batch["id"]))["status"] == "completed"


async def test_a_follower_of_a_withdrawn_line_is_answered(
    tmp_path: Path,
) -> None:
    row = echo_deployment(batch_slots=1)
    async with (
        running_echo(ttft_s=0.4) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        same = {**CHAT, "temperature": 0}
        batch = await talk.create([make_line("a", "Hello there", body={"temperature": 0})])
        while (await load_of(url))["running"] < 1:
            await asyncio.sleep(0.005)
        joined = asyncio.ensure_future(gateway.ask(same))
        await asyncio.sleep(0.05)
        other = await gateway.ask({**CHAT, "temperature": 0.5})
        assert other.status == 200
        assert (await joined).status == 200
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"]["completed"] == 1


@pytest.mark.slow
async def test_lines_wait_for_a_replica_and_survive_its_loss(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        batch = await talk.create([make_line(str(i), str(i)) for i in range(20)])
        await talk.wait(batch["id"], "in_progress")
        async with running_echo(ttft_s=600.0) as stuck:
            await gateway.set_replicas([replica_row(0, stuck)])
            while (await load_of(stuck))["running"] < 20:
                await asyncio.sleep(0.01)
            await gateway.set_replicas([replica_row(0, stuck, state="unhealthy")])
            while (await load_of(stuck))["running"]:
                await asyncio.sleep(0.01)
        async with running_echo() as url:
            await gateway.set_replicas([replica_row(0, url)])
            ended = await talk.wait(batch["id"])
        assert ended["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


async def test_no_line_blocks_the_others_of_a_deployment_with_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = echo_deployment()
    second = replace(row.versions[0], label="echo@v2", revision="r2", weight=0.0)
    identify = Conversations.identify

    def fail_on_poison(self: Conversations, *args: Any) -> str:
        if "poison" in str(args[-1]):
            raise RuntimeError("no conversation")
        return identify(self, *args)

    monkeypatch.setattr(Conversations, "identify", fail_on_poison)
    bad = json.dumps(make_line("x", body={"seed": "NUMBER"})).encode()
    async with (
        running_echo() as url,
        running_gateway(
            tmp_path,
            [url],
            batches=SETTINGS,
            deployment=replace(row, versions=(*row.versions, second)),
        ) as gateway,
    ):
        talk = Talk(gateway)
        lines = [make_line("p", "poison"), bad.replace(b'"NUMBER"', b"1e400"),
                 bad.replace(b'"NUMBER"', b"9" * 5000), bad.replace(b"NUMBER", b"\xff")]  # fmt: skip
        good = [make_line(f"g{number}", f"text {number}") for number in range(20)]
        ended = await talk.wait((await talk.create([*lines, *good]))["id"])
        assert ended["request_counts"] == {"total": 24, "completed": 20, "failed": 4}
        _, errors = await talk.results(ended)
        assert [r["error"]["code"] for r in errors if r["error"]].count("invalid_body") >= 2


async def test_a_line_that_always_fails_ends_in_the_error_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.batches.job.BACKOFF_S", (0.01, 0.02))

    async def answer(exchange: Any) -> None:
        if b"poison" in exchange.body:
            exchange.respond(500, b'{"error": {"message": "it broke", "code": "engine_error"}}')
        elif b"html" in exchange.body:
            exchange.respond(200, b"<html>", [(b"content-type", b"text/html")])
        else:
            body = {"choices": [{"message": {"content": "pretty"}}]}
            exchange.respond(200, json.dumps(body, indent=2).encode())

    from tests.parts import running_server

    async with (
        running_server(answer) as (url, _),
        running_gateway(tmp_path, [url], batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        lines = [make_line("a", "good"), make_line("b", "poison"), make_line("c", "html")]
        ended = await talk.wait((await talk.create(lines))["id"])
        assert ended["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        output, errors = await talk.results(ended)
        assert [text_of(r) for r in output] == ["pretty"]
        found = {r["custom_id"]: r for r in errors}
        assert found["b"]["response"]["status_code"] == 500
        assert found["b"]["response"]["body"]["error"]["message"] == "it broke"
        assert found["c"]["response"]["status_code"] == 502
        assert found["c"]["response"]["body"]["error"]["code"] == "engine_error"
        assert "<html>" in found["c"]["response"]["body"]["error"]["message"]


async def test_a_cancelled_batch_keeps_what_is_done(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=2)
    async with (
        running_echo(ttft_s=0.05, slots=2) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        batch = await talk.create([make_line(str(i), str(i)) for i in range(400)])
        while (await talk.batch(batch["id"]))["request_counts"]["completed"] < 4:
            await asyncio.sleep(0.02)
        reply = await talk.post(f"/v1/batches/{batch['id']}/cancel")
        assert reply.json()["status"] == "cancelling"
        assert reply.json()["cancelling_at"] is not None
        assert (await talk.post(f"/v1/batches/{batch['id']}/cancel")).status == 200
        ended = await talk.wait(batch["id"])
        assert ended["status"] == "cancelled"
        assert ended["cancelled_at"] >= ended["cancelling_at"]
        output, errors = await talk.results(ended)
        assert len(output) == ended["request_counts"]["completed"] >= 4
        assert {r["error"]["code"] for r in errors} == {"batch_cancelled"}
        ids = [r["custom_id"] for r in (*output, *errors)]
        assert sorted(map(int, ids)) == list(range(400))
        assert (await load_of(url))["running"] == 0
        again = await talk.post(f"/v1/batches/{batch['id']}/cancel")
        assert (again.status, again.error["code"]) == (409, "batch_not_cancellable")


@pytest.mark.slow
async def test_a_batch_expires_with_its_window(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=2)
    async with (
        running_echo(ttft_s=0.1, slots=2) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        lines = [make_line(str(i), str(i)) for i in range(500)]
        ended = await talk.wait((await talk.create(lines, completion_window="1s"))["id"])
        assert ended["status"] == "expired"
        assert ended["expired_at"] >= ended["expires_at"]
        output, errors = await talk.results(ended)
        assert output
        assert {r["error"]["code"] for r in errors} == {"batch_expired"}
        assert len(output) + len(errors) == 500 == ended["request_counts"]["total"]


@pytest.mark.slow
async def test_a_revoked_key_ends_its_batches(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=1)
    async with (
        running_echo(ttft_s=0.1) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        _, leaked = create_key(gateway.database, "leaked", tenant="team")
        _, other = create_key(gateway.database, "other", tenant="team")
        await gateway.reader.refresh()
        batch = await Talk(gateway, leaked).create([make_line(str(i), str(i)) for i in range(300)])
        talk = Talk(gateway, other)
        await talk.wait(batch["id"], "in_progress")
        revoke_key(gateway.database, "leaked")
        ended = await talk.wait(batch["id"])
        assert ended["status"] == "failed"
        assert [e["code"] for e in ended["errors"]["data"]] == ["key_revoked"]
        output, errors = await talk.results(ended)
        assert len(output) + len(errors) == 300


@pytest.mark.slow
async def test_batches_share_the_slots(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=4)
    async with (
        running_echo(ttft_s=0.05, slots=4) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway,
    ):
        talk = Talk(gateway)
        large = await talk.create([make_line(str(i), f"large {i}") for i in range(300)])
        while (await talk.batch(large["id"]))["request_counts"]["completed"] < 1:
            await asyncio.sleep(0.02)
        small = await talk.create([make_line(str(i), f"small {i}") for i in range(20)])
        assert (await talk.wait(small["id"]))["status"] == "completed"
        done = (await talk.batch(large["id"]))["request_counts"]["completed"]
        assert done < 200
        await talk.post(f"/v1/batches/{large['id']}/cancel")
        await talk.wait(large["id"])


@pytest.mark.slow
async def test_the_next_worker_resumes_a_batch(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=3)
    async with running_echo(ttft_s=0.05, slots=3) as url:
        async with running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway:
            talk = Talk(gateway)
            batch = await talk.create([make_line(str(i), str(i)) for i in range(90)])
            while (await talk.batch(batch["id"]))["request_counts"]["completed"] < 10:
                await asyncio.sleep(0.02)
        output = tmp_path / "files" / f"file-{batch['id'].removeprefix('batch_')}-output"
        before = output.read_bytes()
        assert before.count(b"\n") >= 10
        # As after a power failure: an incomplete record at the end.
        os.truncate(output, len(before) - 7)
        async with running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as gateway:
            talk = Talk(gateway)
            ended = await talk.wait(batch["id"])
            assert ended["request_counts"] == {"total": 90, "completed": 90, "failed": 0}
            records, errors = await talk.results(ended)
            assert errors == []
            assert sorted(int(r["custom_id"]) for r in records) == list(range(90))
            after = output.read_bytes()
            whole = before[: before.rindex(b"\n", 0, -1) + 1]
            assert after.startswith(whole)
            tokens = sum(r["response"]["body"]["usage"]["total_tokens"] for r in records)
            assert ended["usage"]["total_tokens"] == tokens


@pytest.mark.slow
async def test_of_two_workers_one_runs_batches_until_it_ends(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=2)
    async with (
        running_echo(ttft_s=0.03, slots=8) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as second,
    ):
        async with running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as first:
            # Usually the worker that is notified first takes it; here it is the one that stops.
            batch = await Talk(first).create([make_line(str(i), str(i)) for i in range(200)])
            talk = Talk(second)
            most = 0
            while (await talk.batch(batch["id"]))["request_counts"]["completed"] < 30:
                most = max(most, (await load_of(url))["running"])
                await asyncio.sleep(0.01)
            assert most == 2
            ran = [
                await metric(gateway, "thrifty_batch_lines_total", result="200")
                for gateway in (first, second)
            ]
            assert sorted(count > 0 for count in ran) == [False, True]
        ended = await talk.wait(batch["id"])
        output, _ = await talk.results(ended)
        assert sorted(int(r["custom_id"]) for r in output) == list(range(200))


@pytest.mark.slow
async def test_lines_make_room_for_requests_of_other_workers(tmp_path: Path) -> None:
    row = echo_deployment(batch_slots=4)
    async with (
        running_echo(ttft_s=0.3, slots=8) as url,
        running_gateway(tmp_path, [url], deployment=row, batches=SETTINGS) as runner,
        running_gateway(tmp_path, [url], deployment=row) as other,
    ):
        for name in ("gateway-0", "gateway-1"):
            save_gateway(runner.database, GatewayRow(name, "http://x", 1, 1.0, "ready"))
        talk = Talk(runner)
        lines = [make_line(str(i), str(i), body={"n": 1 + i % 2}) for i in range(12)]
        batch = await talk.create(lines)
        while (await load_of(url))["active_requests"] < 4:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(other.ask(CHAT) for _ in range(12)))
        withdrawn = await metric(runner, "thrifty_batch_lines_total", result="withdrawn")
        assert withdrawn >= 2
        ended = await talk.wait(batch["id"])
        assert ended["request_counts"]["completed"] == 12


async def test_a_full_disk_delays_a_batch_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from thrifty.batches.results import ResultFile

    monkeypatch.setattr("thrifty.batches.records.RETRY_WRITE_S", 0.05)
    append, failures = ResultFile.append, [3]

    def fail_at_first(self: ResultFile, records: list[bytes]) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, records)

    monkeypatch.setattr(ResultFile, "append", fail_at_first)
    async with running_echo() as url, running_gateway(tmp_path, [url], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        ended = await talk.wait(
            (await talk.create([make_line(str(i), str(i)) for i in range(50)]))["id"]
        )
        assert ended["request_counts"]["completed"] == 50
        assert failures == [0]


async def test_progress_is_written_to_the_database(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        ended = await talk.wait((await talk.create([make_line("a")]))["id"])
        row = find_batch(gateway.database, "", ended["id"])
        assert isinstance(row, BatchRow)
        assert (row.counts.total, row.counts.completed) == (1, 1)
        assert find_batch(gateway.database, "somebody", ended["id"]) is None
        assert JSON_HEADER
        assert parse_origin(gateway.url)
