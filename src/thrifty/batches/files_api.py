"""Handlers of `/v1/files`: uploads are stored on disk, and a tenant sees only its own files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import IO, Any
from urllib.parse import quote

from thrifty.batches.api_parts import (
    PURPOSE,
    Threads,
    encode,
    no_such,
    read_expiry,
    read_id,
    read_limit,
    read_query,
    read_tenant,
    respond_page,
    to_stamp,
    unknown,
)
from thrifty.batches.settings import BatchSettings
from thrifty.batches.storage import Storage
from thrifty.db import Database
from thrifty.db.batches import FileRow, delete_file, find_file, insert_file, list_files
from thrifty.db.keys import Key
from thrifty.errors import DatabaseError
from thrifty.http.multipart import Part, find_parts, read_boundary
from thrifty.http.server import Exchange
from thrifty.openai.errors import NOT_FOUND, WireError, bad_request
from thrifty.openai.fields import missing_parameter

CHUNK_BYTES = 1 << 18
MAX_FIELD_BYTES = 4096

_QUOTABLE = bytes.maketrans(b'"\\', b"'_")
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")


class FilesApi:
    """Handles requests about files of an authenticated tenant."""

    def __init__(
        self, *, database: Database, storage: Storage, settings: BatchSettings, threads: Threads
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._threads = threads

    async def list_files(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        """List the tenant's files. Raises a `WireError` or a `DatabaseError`, like the others."""
        await self._list(exchange, read_tenant(key))

    async def create(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        """Store an upload. Raises an `OSError` if the disk cannot."""
        await self._create(exchange, read_tenant(key))

    async def show(self, exchange: Exchange, key: Key | None, ids: Mapping[str, str]) -> None:
        """Show one file."""
        exchange.respond(200, encode(_describe(await self._find(key, ids))))

    async def send_content(
        self, exchange: Exchange, key: Key | None, ids: Mapping[str, str]
    ) -> None:
        """Send the contents of a file."""
        await self._send_content(exchange, await self._find(key, ids))

    async def delete(self, exchange: Exchange, key: Key | None, ids: Mapping[str, str]) -> None:
        """Delete a file, unless an active batch reads it."""
        row = await self._find(key, ids)
        user = await self._threads.run(delete_file, self._database, read_tenant(key), row.id)
        if user is not None:
            raise WireError(
                409,
                f"The file {row.id} is the input of {user}, which has not ended; cancel it first.",
                code="file_in_use",
            )
        await self._threads.run(self._storage.remove, row.id)
        exchange.respond(200, encode({"id": row.id, "object": "file", "deleted": True}))

    async def _find(self, key: Key | None, ids: Mapping[str, str]) -> FileRow:
        file_id = read_id(ids["file"], "file")
        row: FileRow | None = await self._threads.run(
            find_file, self._database, read_tenant(key), file_id
        )
        if row is None:
            raise no_such("file", file_id)
        return row

    async def _create(self, exchange: Exchange, tenant: str) -> None:
        boundary = read_boundary(exchange.headers.get(b"content-type", b""))
        assert exchange.spool is not None
        body = await exchange.spool.finish()
        row = await self._threads.run(
            self._store, body, exchange.spool.size_bytes, boundary, tenant
        )
        exchange.respond(200, encode(_describe(row)))

    def _store(self, body: IO[bytes], size_bytes: int, boundary: bytes, tenant: str) -> FileRow:
        """Runs on a thread, to its end even if the client leaves."""
        with body:
            parts = find_parts(body.fileno(), size_bytes, boundary)
            fields = _name_parts(parts)
            file = fields.get("file")
            if file is None:
                raise missing_parameter("file")
            purpose = _read_text(body, fields.get("purpose"))
            if purpose is None:
                raise missing_parameter("purpose")
            if purpose != PURPOSE:
                raise bad_request(
                    f"'purpose' must be '{PURPOSE}', not {purpose[:60]!r}.",
                    "purpose",
                    "invalid_value",
                )
            if file.size_bytes > self._settings.max_file_bytes:
                raise WireError(
                    413,
                    f"the file has {file.size_bytes} bytes, but the limit is "
                    f"{self._settings.max_file_bytes} (batches.max_file in the spec)",
                    param="file",
                    code="body_too_large",
                )
            keep_s = read_expiry(
                _read_text(body, fields.get("expires_after[anchor]")),
                _read_text(body, fields.get("expires_after[seconds]")),
            )
            created_s = time.time()
            file_id = self._storage.store(body, file.start, file.end)
        row = FileRow(
            id=file_id,
            tenant=tenant,
            filename=_clean_name(file.filename),
            purpose=purpose,
            size_bytes=file.size_bytes,
            created_s=created_s,
            expires_s=created_s + (keep_s or self._settings.keep_s),
        )
        try:
            insert_file(self._database, row)
        except DatabaseError:
            self._storage.remove(file_id)
            raise
        return row

    async def _list(self, exchange: Exchange, tenant: str) -> None:
        query = read_query(exchange, ("purpose", "after", "limit", "order"))
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise bad_request(f"'order' must be 'asc' or 'desc', not {order[:60]!r}.", "order", "invalid_value")  # fmt: skip
        limit = read_limit(query, 10_000, 10_000)

        def read() -> tuple[list[FileRow], bool]:
            return list_files(
                self._database,
                tenant,
                purpose=query.get("purpose"),
                after=query.get("after"),
                limit=limit,
                newest_first=order == "desc",
            )

        await respond_page(exchange, self._threads, read, _describe)

    async def _send_content(self, exchange: Exchange, row: FileRow) -> None:
        try:
            file = await self._threads.run(self._storage.path(row.id).open, "rb")
        except FileNotFoundError:
            raise WireError(
                404,
                f"The contents of {row.id} are missing on the server's disk.",
                type=NOT_FOUND,
                code="file_not_found",
            ) from None
        try:
            exchange.start(
                200,
                [
                    (b"content-type", b"application/octet-stream"),
                    (b"content-disposition", _name_download(row.filename)),
                ],
            )
            # Bytes appended in the meantime do not belong to this response.
            position = 0
            while position < row.size_bytes:
                wanted = min(CHUNK_BYTES, row.size_bytes - position)
                data = await self._threads.run(os.pread, file.fileno(), wanted, position)
                if not data:
                    exchange.abort()
                    return
                position += len(data)
                exchange.write(data)
                await exchange.drain()
            exchange.finish()
        finally:
            file.close()


def _describe(row: FileRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created_s),
        "expires_at": to_stamp(row.expires_s),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def _name_download(filename: str) -> bytes:
    """The `Content-Disposition` of a download (RFC 6266): the name in ASCII, and as it is."""
    plain = filename.encode("ascii", "replace").translate(_QUOTABLE)
    return b"attachment; filename=\"%b\"; filename*=UTF-8''%b" % (
        plain, quote(filename, safe="").encode()
    )  # fmt: skip


def _name_parts(parts: list[Part]) -> dict[str, Part]:
    fields: dict[str, Part] = {}
    for part in parts:
        if part.name not in _FIELDS:
            raise unknown(part.name)
        if part.name in fields:
            raise bad_request(f"'{part.name}' was sent twice.", part.name, "invalid_value")
        fields[part.name] = part
    return fields


def _read_text(body: IO[bytes], part: Part | None) -> str | None:
    if part is None:
        return None
    data = os.pread(body.fileno(), min(part.size_bytes, MAX_FIELD_BYTES), part.start)
    return data.decode("utf-8", "replace")


def _clean_name(name: str | None) -> str:
    """The last component of a path, printable, at most 255 characters."""
    last = PurePath((name or "").replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:255] or "upload.jsonl"
