"""The Files and Batch API: shapes, pages, errors, tenants."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.batches.talk import CHAT, Talk, make_form, make_input, make_line
from tests.parts import know_keys, running_echo, running_gateway
from thrifty.batches.client import CHUNK_BYTES, BatchClient
from thrifty.batches.settings import BatchSettings
from thrifty.db.keys import create_key
from thrifty.http.server import ServerLimits
from thrifty.observe.clock_watch import ClockWatch

SETTINGS = BatchSettings(max_file_bytes=2_000_000)


async def test_a_file_is_stored_listed_returned_and_deleted(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        data = make_input([make_line("a"), make_line("b")])
        made = (await talk.upload(data)).json()
        assert made["object"] == "file"
        assert (made["bytes"], made["filename"], made["purpose"]) == (
            len(data),
            "in.jsonl",
            "batch",
        )
        assert made["status"] == "processed"
        assert made["expires_at"] - made["created_at"] == pytest.approx(30 * 86400, abs=1)
        found = await talk.ask("GET", f"/v1/files/{made['id']}")
        assert found.json() == made
        content = await talk.ask("GET", f"/v1/files/{made['id']}/content")
        assert content.body == data
        assert (tmp_path / "files" / made["id"]).stat().st_mode & 0o777 == 0o600
        gone = await talk.ask("DELETE", f"/v1/files/{made['id']}")
        assert gone.json() == {"id": made["id"], "object": "file", "deleted": True}
        assert (await talk.ask("GET", f"/v1/files/{made['id']}")).status == 404
        assert not (tmp_path / "files" / made["id"]).exists()


async def test_without_keys_a_page_of_another_site_reaches_no_files(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        form, body = make_form(make_input([make_line("a")]))
        talk = Talk(gateway)
        made = (await talk.ask("POST", "/v1/files", body, form)).json()
        own = f"/v1/files/{made['id']}"
        batch = json.dumps({"input_file_id": made["id"]}).encode()
        requests = [
            ("GET", "/v1/files", b"", b""),
            ("GET", f"{own}/content", b"", b""),
            ("DELETE", own, b"", b""),
            ("POST", "/v1/files", body, form),
            ("POST", "/v1/batches", batch, b"content-type: text/plain\r\n"),
        ]
        for page in (b"origin: https://evil.example\r\n", b"sec-fetch-site: cross-site\r\n"):
            for method, path, sent, headers in requests:
                reply = await talk.ask(method, path, sent, page + headers)
                assert reply.status == 403, (page, method, path)
        for method, path, sent, headers in requests:
            status = await talk.ask_as("evil.example", method, path, sent, headers)
            assert status == 403, (method, path)
        # A client elsewhere may know this service by any name.
        remote = b"x-forwarded-for: 198.51.100.7\r\n"
        assert await talk.ask_as("evil.example", "GET", own, b"", remote) == 200
        same = f"origin: {gateway.url}\r\n".encode()
        assert (await talk.ask("GET", own, headers=same)).status == 200
        [listed] = (await talk.ask("GET", "/v1/files")).json()["data"]
        assert listed == made


async def test_limits_of_upload_sizes(tmp_path: Path) -> None:
    limits = ServerLimits(max_body_bytes=10_000)
    async with running_gateway(tmp_path, [], batches=SETTINGS, limits=limits) as gateway:
        talk = Talk(gateway)
        data = b"x" * 1_900_000
        made = (await talk.upload(data)).json()
        assert (await talk.ask("GET", f"/v1/files/{made['id']}/content")).body == data
        for size in (2_000_001, 3_000_000):
            refused = await talk.upload(b"x" * size)
            assert refused.status == 413
            assert refused.error["code"] == "body_too_large"
            assert "batches.max_file" in refused.error["message"]


@pytest.mark.parametrize("name", ["in.jsonl", 'a "b" ü.jsonl', "a;b=c.jsonl"])
async def test_the_command_line_client_uploads_a_file_unchanged(tmp_path: Path, name: str) -> None:
    data = b"\r\n--x\r\n" * (CHUNK_BYTES // 8)
    path = tmp_path / name
    path.write_bytes(data)
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        client = BatchClient(gateway.url, None)
        try:
            file_id = await asyncio.to_thread(client.upload, path)
            await asyncio.to_thread(client.fetch, file_id, tmp_path / "back")
        finally:
            client.close()
        assert (tmp_path / "back").read_bytes() == data
        made = (await Talk(gateway).ask("GET", f"/v1/files/{file_id}")).json()
        assert made["bytes"] == len(data)
        assert made["filename"] == name.replace('"', "%22")


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        (make_form(b"{}", None), "missing_required_parameter", "purpose"),
        (make_form(b"{}", "fine-tune"), "invalid_value", "purpose"),
        (make_form(b"{}", colour="red"), "unknown_parameter", "colour"),
        (make_form(b"{}", **{"expires_after[anchor]": "now", "expires_after[seconds]": "9999"}),
         "invalid_value", "expires_after.anchor"),
        (make_form(b"{}", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}),
         "invalid_value", "expires_after.seconds"),
        ((b"content-type: application/json\r\n", b"{}"), "malformed_form", None),
        ((b"content-type: multipart/form-data; boundary=b\r\n", b"{}"), "malformed_form", None),
        ((b"", b""), "malformed_form", None),
    ],
)  # fmt: skip
async def test_a_bad_upload_is_refused(
    tmp_path: Path, form: tuple[bytes, bytes], code: str, param: str | None
) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        headers, body = form
        reply = await Talk(gateway).ask("POST", "/v1/files", body, headers)
        assert reply.status == 400, reply.body
        assert (reply.error["code"], reply.error["param"]) == (code, param)
        assert not [p for p in (tmp_path / "files").iterdir() if p.name.startswith("file-")]


async def test_a_custom_expiry(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        made = (await Talk(gateway).upload(b"{}", **fields)).json()
        assert made["expires_at"] - made["created_at"] == pytest.approx(3600, abs=1)


async def test_a_clock_that_jumps_ahead_deletes_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        made = (await talk.upload(b"{}")).json()
        assert gateway.parts.batches is not None
        runner, real = gateway.parts.batches.runner, time.time
        runner._clock = ClockWatch(lambda: time.time())
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + 365 * 86400)
            await asyncio.to_thread(runner._remove_expired)
            assert (await talk.ask("GET", f"/v1/files/{made['id']}")).status == 200
            runner._clock = ClockWatch()  # as one that never saw another time
            await asyncio.to_thread(runner._remove_expired)
            assert (await talk.ask("GET", f"/v1/files/{made['id']}")).status == 404


async def test_pages_of_files_and_of_batches(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        ids = [(await talk.upload(b"{}")).json()["id"] for _ in range(5)]
        page = (await talk.ask("GET", "/v1/files?limit=2")).json()
        assert [f["id"] for f in page["data"]] == ids[:2:-1]
        assert page["has_more"]
        page = (await talk.ask("GET", f"/v1/files?limit=3&after={page['last_id']}")).json()
        assert [f["id"] for f in page["data"]] == ids[2::-1]
        assert not page["has_more"]
        page = (await talk.ask("GET", "/v1/files?order=asc&purpose=batch")).json()
        assert [f["id"] for f in page["data"]] == ids
        assert (await talk.ask("GET", "/v1/files?purpose=vision")).json()["data"] == []
        made = [(await talk.create([make_line("a", f"{i}")]))["id"] for i in range(4)]
        page = (await talk.ask("GET", "/v1/batches?limit=3")).json()
        assert [b["id"] for b in page["data"]] == made[:0:-1]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (made[3], made[1], True)
        page = (await talk.ask("GET", f"/v1/batches?after={made[1]}")).json()
        assert ([b["id"] for b in page["data"]], page["has_more"]) == ([made[0]], False)
        for query in ("limit=0", "limit=101", "limit=x", "after=batch_none", "colour=red"):
            reply = await talk.ask("GET", f"/v1/batches?{query}")
            assert reply.status in (400, 404)
            assert reply.error["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"endpoint": None}, 400, "endpoint"),
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"endpoint": 7}, 400, "endpoint"),
        ({"completion_window": None}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "99d"}, 400, "completion_window"),
        ({"completion_window": "0s"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {"a" * 65: "1"}}, 400, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata"),
        ({"metadata": "text"}, 400, "metadata"),
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"input_file_id": "../../etc/passwd"}, 404, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400,
         "output_expires_after.seconds"),
        ({"output_expires_after": 5}, 400, "output_expires_after"),
        ({"priority": "high"}, 400, "priority"),
    ],
)  # fmt: skip
async def test_a_bad_batch_is_refused(
    tmp_path: Path, changes: dict[str, Any], status: int, param: str
) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        file = (await talk.upload(b"{}")).json()["id"]
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **changes}
        reply = await talk.post("/v1/batches", {k: v for k, v in body.items() if v is not None})
        assert (reply.status, reply.error["param"]) == (status, param)
        assert (await talk.ask("GET", "/v1/batches")).json()["data"] == []


async def test_wrong_methods_paths_and_bodies(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        assert (await talk.ask("DELETE", "/v1/files")).status == 405
        assert (await talk.ask("PUT", "/v1/batches")).status == 405
        assert (await talk.ask("GET", "/v1/files/a/b/c")).status == 404
        assert (await talk.ask("GET", "/v1/batches/none")).error["code"] == "batch_not_found"
        assert (await talk.post("/v1/batches/none/cancel")).status == 404
        for body in (b"{", b"[]", b"[" * 100_000):
            reply = await talk.ask("POST", "/v1/batches", body)
            assert (reply.status, reply.error["code"]) == (400, "invalid_json")


async def test_without_a_folder_there_are_no_routes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, []) as gateway:
        assert (await Talk(gateway).ask("GET", "/v1/files")).status == 404


async def test_active_batches_are_limited(tmp_path: Path) -> None:
    settings = BatchSettings(max_active=2)
    async with running_gateway(tmp_path, [], batches=settings) as gateway:
        talk = Talk(gateway)
        first = await talk.create([make_line("a")])
        await talk.create([make_line("a")])
        body = {
            "input_file_id": first["input_file_id"], "endpoint": CHAT, "completion_window": "1h",
        }  # fmt: skip
        reply = await talk.post("/v1/batches", body)
        assert (reply.status, reply.error["code"]) == (429, "too_many_batches")
        await talk.post(f"/v1/batches/{first['id']}/cancel")
        await talk.wait(first["id"])
        assert (await talk.post("/v1/batches", body)).status == 200


async def test_an_input_in_use_is_not_deleted(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        talk = Talk(gateway)
        batch = await talk.create([make_line("a")])
        path = f"/v1/files/{batch['input_file_id']}"
        reply = await talk.ask("DELETE", path)
        assert (reply.status, reply.error["code"]) == (409, "file_in_use")
        await talk.post(f"/v1/batches/{batch['id']}/cancel")
        await talk.wait(batch["id"])
        assert (await talk.ask("DELETE", path)).status == 200


async def test_tenants_see_only_their_own_files_and_batches(tmp_path: Path) -> None:
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], batches=SETTINGS) as gateway,
    ):
        keys = {
            name: create_key(gateway.database, name, tenant=tenant)[1]
            for name, tenant in (("ann", "red"), ("bob", "blue"), ("abe", "red"))
        }
        _, watcher = create_key(gateway.database, "mo", role="viewer")
        await gateway.reader.refresh()
        ann, bob, abe = (Talk(gateway, keys[name]) for name in ("ann", "bob", "abe"))
        batch = await ann.create([make_line("a", "secret")])
        ended = await ann.wait(batch["id"])
        files = (ended["input_file_id"], ended["output_file_id"])
        for path in (f"/v1/batches/{batch['id']}", *(f"/v1/files/{f}" for f in files),
                     *(f"/v1/files/{f}/content" for f in files)):  # fmt: skip
            assert (await bob.ask("GET", path)).status == 404, path
            assert (await abe.ask("GET", path)).status == 200, path
        assert (await bob.ask("DELETE", f"/v1/files/{files[1]}")).status == 404
        assert (await bob.post(f"/v1/batches/{batch['id']}/cancel")).status == 404
        assert (await bob.ask("GET", "/v1/files")).json()["data"] == []
        assert (await bob.ask("GET", "/v1/batches")).json()["data"] == []
        assert (await bob.ask("GET", f"/v1/batches?after={batch['id']}")).status == 404
        reply = await bob.post(
            "/v1/batches",
            {"input_file_id": files[0], "endpoint": CHAT, "completion_window": "1h"},
        )
        assert reply.status == 404
        assert [b["id"] for b in (await abe.ask("GET", "/v1/batches")).json()["data"]] == [
            batch["id"]
        ]
        # Callers without a key are refused, an upload before it is sent.
        for stranger, status in ((Talk(gateway), 401), (Talk(gateway, "sk-wrong"), 401),
                                 (Talk(gateway, watcher), 403)):  # fmt: skip
            assert (await stranger.ask("GET", "/v1/files")).status == status
            assert (await stranger.upload(b"x" * 100_000)).status == status
        assert len((await ann.ask("GET", "/v1/files")).json()["data"]) == 2


async def test_a_new_key_may_upload(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, [], batches=SETTINGS) as gateway:
        create_key(gateway.database, "first")
        await know_keys(gateway, 1)
        _, secret = create_key(gateway.database, "second")
        assert (await Talk(gateway, secret).upload(b"{}")).status == 200
