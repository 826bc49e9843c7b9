"""`/v1/files` and `/v1/batches`, as OpenAI has them. A tenant sees its own and nobody else's.

Nothing here is on the path of a request to a model: the database and the disk are waited for, on a
few threads.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import IO, Any
from urllib.parse import parse_qs

import msgspec

from thrifty.db import Database
from thrifty.db.batches import (
    BatchRow,
    BatchStatus,
    FileRow,
    cancel_batch,
    delete_file,
    find_batch,
    find_file,
    insert_batch,
    insert_file,
    list_batches,
    list_files,
)
from thrifty.db.keys import Key, Role
from thrifty.errors import DatabaseError
from thrifty.gateway.authenticate import UnknownKey, authenticate, authenticate_late
from thrifty.gateway.batches.settings import BatchSettings
from thrifty.gateway.batches.storage import Storage
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.units import parse_duration_s
from thrifty.wire.errors import NOT_FOUND, RATE_LIMIT, WireError, bad_request, unavailable
from thrifty.wire.fields import Endpoint
from thrifty.wire.ids import new_id
from thrifty.wire.multipart import Part, find_parts, read_boundary
from thrifty.wire.server import Exchange
from thrifty.wire.spool import Spool, no_room

BATCH_PATHS = ("/v1/files", "/v1/batches")
ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS)
PURPOSE = "batch"
CHUNK_BYTES = 1 << 18
MAX_FIELD_BYTES = 4096
THREADS = 4
MIN_WINDOW_S, MAX_WINDOW_S = 1.0, 30 * 86400.0
MIN_KEEP_S, MAX_KEEP_S = 3600, 30 * 86400

_FILE_PATH = re.compile(r"/v1/files/([^/]{1,128})(/content)?")
_BATCH_PATH = re.compile(r"/v1/batches/([^/]{1,128})(/cancel)?")
_CALLERS = frozenset({Role.USER, Role.ADMIN})
_FILE_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_BATCH_FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
)
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class BatchPages:
    """Answers requests about files and batches."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        reader: TableReader,
        database: Database,
        storage: Storage,
        settings: BatchSettings,
        max_body_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self._table = table
        self._reader = reader
        self._database = database
        self._storage = storage
        self._settings = settings
        self._max_body_bytes = max_body_bytes
        self._wake = wake
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)

    def open_spool(self, exchange: Exchange) -> Spool | None:
        """Have an upload go to disk. Strangers are refused before they send it."""
        if exchange.method != "POST":
            return None
        limit, name = self._settings.max_file_bytes + 65_536, "batches.max_file"
        try:
            authenticate(exchange, self._table, _CALLERS)
        except UnknownKey:
            # Made a moment ago, perhaps; a small body may wait for the next look at the keys.
            limit, name = self._max_body_bytes, "limits.max_body"
        return Spool(self._storage.folder, limit, name)

    async def answer(self, exchange: Exchange) -> None:
        """Answer, or raise a `WireError`."""
        key = await authenticate_late(exchange, self._table, self._reader, _CALLERS)
        tenant = key.tenant if key is not None else ""
        try:
            await self._answer(exchange, key, tenant)
        except DatabaseError:
            raise unavailable(
                "the database is away; try again soon", "database_away", 5.0
            ) from None
        except OSError as error:
            raise no_room(error) from None

    async def _answer(self, exchange: Exchange, key: Key | None, tenant: str) -> None:
        method, path = exchange.method, exchange.path
        if path == "/v1/files":
            if method == "POST":
                await self._create_file(exchange, tenant)
            elif method == "GET":
                await self._list_files(exchange, tenant)
            else:
                raise _wrong_method(exchange, "GET and POST")
        elif path == "/v1/batches":
            if method == "POST":
                await self._create_batch(exchange, key, tenant)
            elif method == "GET":
                await self._list_batches(exchange, tenant)
            else:
                raise _wrong_method(exchange, "GET and POST")
        elif match := _FILE_PATH.fullmatch(path):
            await self._answer_file(exchange, tenant, match[1], content=bool(match[2]))
        elif match := _BATCH_PATH.fullmatch(path):
            await self._answer_batch(exchange, tenant, match[1], cancel=bool(match[2]))
        else:
            raise WireError(
                404, f"There is nothing at {path[:100]}.", type=NOT_FOUND, code="unknown_path"
            )

    async def _on_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    # files

    async def _create_file(self, exchange: Exchange, tenant: str) -> None:
        boundary = read_boundary(exchange.headers.get(b"content-type", b""))
        assert exchange.spool is not None
        body = await exchange.spool.finish()
        row = await self._on_thread(
            self._store_file, body, exchange.spool.size_bytes, boundary, tenant
        )
        exchange.respond(200, _encode(_describe_file(row)))

    def _store_file(
        self, body: IO[bytes], size_bytes: int, boundary: bytes, tenant: str
    ) -> FileRow:
        """On a thread, to its end whatever becomes of the client."""
        with body:
            parts = find_parts(body.fileno(), size_bytes, boundary)
            fields = _name_parts(parts)
            file = fields.get("file")
            if file is None:
                raise _missing("file")
            purpose = _read_text(body, fields.get("purpose"))
            if purpose is None:
                raise _missing("purpose")
            if purpose != PURPOSE:
                raise bad_request(
                    f"'purpose' must be '{PURPOSE}', not {purpose[:60]!r}.",
                    "purpose",
                    "invalid_value",
                )
            if file.size_bytes > self._settings.max_file_bytes:
                raise WireError(
                    413,
                    f"the file has {file.size_bytes} bytes; the limit is "
                    f"{self._settings.max_file_bytes} (batches.max_file in the spec)",
                    param="file",
                    code="body_too_large",
                )
            keep_s = _read_expiry(
                _read_text(body, fields.get("expires_after[anchor]")),
                _read_text(body, fields.get("expires_after[seconds]")),
            )
            created_s = time.time()
            file_id = self._storage.keep(body, file.start, file.end)
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

    async def _list_files(self, exchange: Exchange, tenant: str) -> None:
        query = _read_query(exchange, ("purpose", "after", "limit", "order"))
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise bad_request(f"'order' must be 'asc' or 'desc', not {order[:60]!r}.", "order", "invalid_value")  # fmt: skip
        limit = _read_limit(query, 10_000, 10_000)

        def read() -> tuple[list[FileRow], bool]:
            return list_files(
                self._database,
                tenant,
                purpose=query.get("purpose"),
                after=query.get("after"),
                limit=limit,
                newest_first=order == "desc",
            )

        await self._respond_page(exchange, read, _describe_file)

    async def _answer_file(
        self, exchange: Exchange, tenant: str, file_id: str, *, content: bool
    ) -> None:
        row = await self._on_thread(find_file, self._database, tenant, file_id)
        if row is None:
            raise _no_such("file", file_id)
        if exchange.method == "GET" and content:
            await self._send_content(exchange, row)
        elif exchange.method == "GET":
            exchange.respond(200, _encode(_describe_file(row)))
        elif exchange.method == "DELETE" and not content:
            user = await self._on_thread(delete_file, self._database, tenant, file_id)
            if user is not None:
                raise WireError(
                    409,
                    f"The file {file_id} is the input of {user}, which is not over; cancel that first.",
                    code="file_in_use",
                )
            await self._on_thread(self._storage.remove, file_id)
            exchange.respond(200, _encode({"id": file_id, "object": "file", "deleted": True}))
        else:
            raise _wrong_method(exchange, "GET" if content else "GET and DELETE")

    async def _send_content(self, exchange: Exchange, row: FileRow) -> None:
        try:
            file = await self._on_thread(self._storage.path(row.id).open, "rb")
        except FileNotFoundError:
            raise WireError(
                404,
                f"The contents of {row.id} are gone from the server's disk.",
                type=NOT_FOUND,
                code="file_not_found",
            ) from None
        try:
            name = row.filename.encode("ascii", "replace").replace(b'"', b"'")
            exchange.start(
                200,
                [
                    (b"content-type", b"application/octet-stream"),
                    (b"content-disposition", b'attachment; filename="%b"' % name),
                ],
            )
            # What is appended meanwhile is not this file's yet.
            position = 0
            while position < row.size_bytes:
                wanted = min(CHUNK_BYTES, row.size_bytes - position)
                data = await self._on_thread(os.pread, file.fileno(), wanted, position)
                if not data:
                    exchange.abort()
                    return
                position += len(data)
                exchange.write(data)
                await exchange.drain()
            exchange.finish()
        finally:
            file.close()

    # batches

    async def _create_batch(self, exchange: Exchange, key: Key | None, tenant: str) -> None:
        body = _read_body(exchange)
        endpoint = _require_string(body, "endpoint")
        if endpoint not in ENDPOINTS:
            raise bad_request(
                f"'endpoint' must be one of {', '.join(repr(e.value) for e in ENDPOINTS)}, not "
                f"{endpoint[:60]!r}.",
                "endpoint",
                "invalid_value",
            )
        window = _require_string(body, "completion_window")
        window_s = _parse_window_s(window)
        metadata = _check_metadata(body.get("metadata"))
        keep = body.get("output_expires_after")
        keep_s = None
        if keep is not None:
            if not isinstance(keep, dict):
                raise bad_request(
                    "'output_expires_after' must be an object with 'anchor' and 'seconds'.",
                    "output_expires_after",
                    "invalid_value",
                )
            keep_s = _read_expiry(keep.get("anchor"), keep.get("seconds"), "output_expires_after")
        file_id = _require_string(body, "input_file_id")
        file = await self._on_thread(find_file, self._database, tenant, file_id)
        if file is None:
            raise _no_such("file", file_id, "input_file_id")
        if file.purpose != PURPOSE:
            raise bad_request(
                f"{file_id} has the purpose {file.purpose!r}; upload the input with 'batch'.",
                "input_file_id",
                "invalid_value",
            )
        now_s = time.time()
        row = BatchRow(
            id=f"batch_{new_id()}",
            tenant=tenant,
            key_id=key.id if key is not None else None,
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=window,
            status=BatchStatus.VALIDATING,
            created_s=now_s,
            expires_s=now_s + window_s,
            metadata=metadata,
            output_keep_s=keep_s,
        )
        most = self._settings.max_active
        if not await self._on_thread(insert_batch, self._database, row, most):
            raise WireError(
                429,
                f"{most} batches of yours are under way already; wait for one of them to end.",
                type=RATE_LIMIT,
                code="too_many_batches",
                retry_after_s=60.0,
            )
        self._wake()
        exchange.respond(200, _encode(_describe_batch(row)))

    async def _list_batches(self, exchange: Exchange, tenant: str) -> None:
        query = _read_query(exchange, ("after", "limit"))
        limit = _read_limit(query, 20, 100)

        def read() -> tuple[list[BatchRow], bool]:
            return list_batches(self._database, tenant, after=query.get("after"), limit=limit)

        await self._respond_page(exchange, read, _describe_batch)

    async def _answer_batch(
        self, exchange: Exchange, tenant: str, batch_id: str, *, cancel: bool
    ) -> None:
        if exchange.method != ("POST" if cancel else "GET"):
            raise _wrong_method(exchange, "POST" if cancel else "GET")
        done = cancel and await self._on_thread(
            cancel_batch, self._database, tenant, batch_id, time.time()
        )
        row = await self._on_thread(find_batch, self._database, tenant, batch_id)
        if row is None:
            raise _no_such("batch", batch_id)
        if done:
            self._wake()
        elif cancel and row.status is not BatchStatus.CANCELLING:
            raise WireError(
                409,
                f"The batch {batch_id} is {row.status.value!r} and cannot be cancelled any more.",
                code="batch_not_cancellable",
            )
        exchange.respond(200, _encode(_describe_batch(row)))

    async def _respond_page(
        self,
        exchange: Exchange,
        read: Callable[[], tuple[list[Any], bool]],
        describe: Callable[[Any], dict[str, Any]],
    ) -> None:
        try:
            rows, more = await self._on_thread(read)
        except KeyError as error:
            raise _no_such("entry", str(error.args[0]), "after") from None
        exchange.respond(
            200,
            _encode(
                {
                    "object": "list",
                    "data": [describe(row) for row in rows],
                    "first_id": rows[0].id if rows else None,
                    "last_id": rows[-1].id if rows else None,
                    "has_more": more,
                }
            ),
        )


def _describe_file(row: FileRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created_s),
        "expires_at": _to_stamp(row.expires_s),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def _describe_batch(row: BatchRow) -> dict[str, Any]:
    counts = row.counts
    errors = None if row.errors is None else {"object": "list", "data": row.errors}
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": errors,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status.value,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": int(row.created_s),
        "expires_at": int(row.expires_s),
        **{f"{name}_at": _to_stamp(getattr(row, f"{name}_s")) for name in _TIMES},
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
        },
        "usage": {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        },
        "metadata": row.metadata,
    }


def _to_stamp(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


# What clients send


def _name_parts(parts: list[Part]) -> dict[str, Part]:
    fields: dict[str, Part] = {}
    for part in parts:
        if part.name not in _FILE_FIELDS:
            raise bad_request(
                f"Unknown parameter: '{part.name[:64]}'.", part.name[:64], "unknown_parameter"
            )
        if part.name in fields:
            raise bad_request(f"'{part.name}' was sent twice.", part.name, "invalid_value")
        fields[part.name] = part
    return fields


def _read_text(body: IO[bytes], part: Part | None) -> str | None:
    if part is None:
        return None
    data = os.pread(body.fileno(), min(part.size_bytes, MAX_FIELD_BYTES), part.start)
    return data.decode("utf-8", "replace")


def _read_expiry(anchor: Any, seconds: Any, name: str = "expires_after") -> float | None:
    """The seconds that a file is to be kept."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise bad_request(
            f"'{name}.anchor' must be 'created_at', not {str(anchor)[:60]!r}.",
            f"{name}.anchor",
            "invalid_value",
        )
    text = str(seconds)
    if isinstance(seconds, bool) or not text.isdecimal() or len(text) > 9 or not MIN_KEEP_S <= int(text) <= MAX_KEEP_S:  # fmt: skip
        raise bad_request(
            f"'{name}.seconds' must be a whole number between {MIN_KEEP_S} and {MAX_KEEP_S}, not "
            f"{text[:60]!r}.",
            f"{name}.seconds",
            "invalid_value",
        )
    return float(text)


def _clean_name(name: str | None) -> str:
    """The last part of a path, printable, of at most 255 characters."""
    last = PurePath((name or "").replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:255] or "upload.jsonl"


def _read_body(exchange: Exchange) -> dict[str, Any]:
    try:
        body = _decode(exchange.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
    for name in body:
        if name not in _BATCH_FIELDS:
            raise bad_request(f"Unknown parameter: '{name[:64]}'.", name[:64], "unknown_parameter")
    return body


def _require_string(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        raise _missing(name)
    if not isinstance(value, str):
        raise bad_request(f"'{name}' must be a string.", name, "invalid_value")
    return value


def _parse_window_s(text: str) -> float:
    try:
        window_s = parse_duration_s(text)
    except ValueError:
        window_s = 0.0
    if not MIN_WINDOW_S <= window_s <= MAX_WINDOW_S or len(text) > 32:
        raise bad_request(
            f"'completion_window' must be a duration between 1s and 30d, such as 24h, not {text[:60]!r}.",
            "completion_window",
            "invalid_value",
        )
    return window_s


def _check_metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    good = isinstance(value, dict) and len(value) <= 16
    if not good or not all(
        len(name) <= 64 and isinstance(text, str) and len(text) <= 512
        for name, text in value.items()
    ):
        raise bad_request(
            "'metadata' must be an object with up to 16 names of up to 64 characters, each with a "
            "string of up to 512.",
            "metadata",
            "invalid_value",
        )
    return dict(value)


def _read_query(exchange: Exchange, names: tuple[str, ...]) -> dict[str, str]:
    query = {}
    for name, values in parse_qs(exchange.query.decode("latin-1")).items():
        if name not in names:
            raise bad_request(f"Unknown parameter: '{name[:64]}'.", name[:64], "unknown_parameter")
        query[name] = values[-1]
    return query


def _read_limit(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise bad_request(
            f"'limit' must be a whole number between 1 and {most}, not {text[:60]!r}.",
            "limit",
            "invalid_value",
        )
    return int(text)


def _missing(name: str) -> WireError:
    return bad_request(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


def _no_such(what: str, ident: str, param: str | None = None) -> WireError:
    return WireError(
        404,
        f"There is no {what} {ident[:100]!r}.",
        type=NOT_FOUND,
        param=param,
        code=f"{what}_not_found",
    )


def _wrong_method(exchange: Exchange, methods: str) -> WireError:
    return WireError(
        405, f"{exchange.path[:100]} takes {methods}, not {exchange.method}.",
        code="method_not_allowed",
    )  # fmt: skip
