"""A client for tests of the Files and Batch API, over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from tests.parts import GatewayUnderTest, Reply
from thrifty.http.origin import parse_origin

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


def make_line(custom_id: Any, content: str = "Hi", **changes: Any) -> dict[str, Any]:
    """A line with a question to the echo engine."""
    body = {"model": "echo", "messages": [{"role": "user", "content": content}]}
    body |= changes.pop("body", {})
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def make_input(lines: Sequence[Any]) -> bytes:
    """A file of lines; bytes are used unchanged."""
    return b"".join(
        line + b"\n" if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
        for line in lines
    )


def make_form(data: bytes, purpose: str | None = "batch", **fields: str) -> tuple[bytes, bytes]:
    """The header lines and the body of an upload."""
    parts = {**({"purpose": purpose} if purpose is not None else {}), **fields}
    body = b"".join(
        b'--bnd\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (n.encode(), v.encode())
        for n, v in parts.items()
    )
    body += (
        b'--bnd\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        b"content-type: application/octet-stream\r\n\r\n" + data + b"\r\n--bnd--\r\n"
    )
    return b"content-type: multipart/form-data; boundary=bnd\r\n", body


class Talk:
    """A client of one gateway."""

    def __init__(self, gateway: GatewayUnderTest, key: str | None = None) -> None:
        self.gateway = gateway
        self._key = f"authorization: Bearer {key}\r\n".encode() if key else b""

    async def ask(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> Reply:
        """Send one request."""
        answer = await self.gateway.client.open(
            parse_origin(self.gateway.url), method, path, headers=self._key + headers, body=body
        )
        return Reply(answer.status, answer.headers, await answer.read())

    async def ask_as(self, host: str, method: str, path: str, body: bytes, headers: bytes) -> int:
        """Send one request under another host name; returns the status."""
        origin = parse_origin(self.gateway.url)
        reader, writer = await asyncio.open_connection(origin.host, origin.port)
        writer.write(
            b"%b %b HTTP/1.1\r\nhost: %b\r\n%bconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (method.encode(), path.encode(), host.encode(), headers, len(body), body)
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])

    async def upload(self, data: bytes, purpose: str | None = "batch", **fields: str) -> Reply:
        """Upload a file."""
        headers, body = make_form(data, purpose, **fields)
        return await self.ask("POST", "/v1/files", body, headers)

    async def post(self, path: str, body: Any = None) -> Reply:
        """POST JSON."""
        return await self.ask("POST", path, json.dumps(body).encode() if body is not None else b"")

    async def create(self, lines: Sequence[Any], **fields: Any) -> dict[str, Any]:
        """Upload lines and create a batch of them."""
        file = (await self.upload(make_input(lines))).json()
        body = {
            "input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields,
        }  # fmt: skip
        reply = await self.post("/v1/batches", body)
        assert reply.status == 200, reply.body
        return reply.json()

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """The current state of a batch."""
        reply = await self.ask("GET", f"/v1/batches/{batch_id}")
        assert reply.status == 200, reply.body
        return reply.json()

    async def wait(self, batch_id: str, *statuses: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait until a batch has ended or has one of these statuses."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            batch = await self.batch(batch_id)
            if batch["status"] in (statuses or OVER):
                return batch
            assert time.monotonic() < deadline_s, batch
            assert batch["status"] not in OVER, batch
            await asyncio.sleep(0.02)

    async def records(self, file_id: str | None) -> list[dict[str, Any]]:
        """The records in a file; empty if there is no file."""
        if file_id is None:
            return []
        reply = await self.ask("GET", f"/v1/files/{file_id}/content")
        assert reply.status == 200, reply.body
        return [json.loads(line) for line in reply.body.splitlines()]

    async def results(
        self, batch: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The records of the output file and of the error file."""
        output = await self.records(batch["output_file_id"])
        return output, await self.records(batch["error_file_id"])


def text_of(record: dict[str, Any]) -> str:
    """The text that the model answered."""
    return str(record["response"]["body"]["choices"][0]["message"]["content"])
