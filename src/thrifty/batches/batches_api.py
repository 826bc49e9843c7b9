"""Handlers of `/v1/batches`: create, list, show and cancel batches. The runner runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

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
from thrifty.db import Database
from thrifty.db.batches import (
    BatchRow,
    BatchStatus,
    cancel_batch,
    find_batch,
    find_file,
    insert_batch,
    list_batches,
)
from thrifty.db.keys import Key
from thrifty.http.server import Exchange
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import RATE_LIMIT, WireError, bad_request
from thrifty.openai.fields import Endpoint, missing_parameter
from thrifty.openai.ids import new_id
from thrifty.units import parse_duration_s

ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RERANK)
MIN_WINDOW_S, MAX_WINDOW_S = 1.0, 30 * 86400.0

_FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
)
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchesApi:
    """Handles requests about batches of an authenticated tenant."""

    def __init__(
        self,
        *,
        database: Database,
        settings: BatchSettings,
        threads: Threads,
        wake: Callable[[], None],
    ) -> None:
        """`wake` makes the runner look for new batches."""
        self._database = database
        self._settings = settings
        self._threads = threads
        self._wake = wake

    async def list_batches(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        """List the tenant's batches. Raises a `WireError` or a `DatabaseError`, like the others."""
        await self._list(exchange, read_tenant(key))

    async def create(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        """Create a batch."""
        await self._create(exchange, key, read_tenant(key))

    async def show(self, exchange: Exchange, key: Key | None, ids: Mapping[str, str]) -> None:
        """Show one batch."""
        exchange.respond(200, encode(_describe(await self._find(read_tenant(key), ids["batch"]))))

    async def cancel(self, exchange: Exchange, key: Key | None, ids: Mapping[str, str]) -> None:
        """Cancel a batch that has not ended."""
        tenant, batch_id = read_tenant(key), read_id(ids["batch"], "batch")
        done = await self._threads.run(cancel_batch, self._database, tenant, batch_id, time.time())
        row = await self._find(tenant, batch_id)
        if done:
            self._wake()
        elif row.status is not BatchStatus.CANCELLING:
            raise WireError(
                409,
                f"The batch {batch_id} is {row.status.value!r} and can no longer be cancelled.",
                code="batch_not_cancellable",
            )
        exchange.respond(200, encode(_describe(row)))

    async def _find(self, tenant: str, batch_id: str) -> BatchRow:
        read_id(batch_id, "batch")
        row: BatchRow | None = await self._threads.run(find_batch, self._database, tenant, batch_id)
        if row is None:
            raise no_such("batch", batch_id)
        return row

    async def _create(self, exchange: Exchange, key: Key | None, tenant: str) -> None:
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
            keep_s = read_expiry(keep.get("anchor"), keep.get("seconds"), "output_expires_after")
        file_id = read_id(_require_string(body, "input_file_id"), "file", "input_file_id")
        file = await self._threads.run(find_file, self._database, tenant, file_id)
        if file is None:
            raise no_such("file", file_id, "input_file_id")
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
        if not await self._threads.run(insert_batch, self._database, row, most):
            raise WireError(
                429,
                f"You already have {most} active batches; wait for one of them to end.",
                type=RATE_LIMIT,
                code="too_many_batches",
                retry_after_s=60.0,
            )
        self._wake()
        exchange.respond(200, encode(_describe(row)))

    async def _list(self, exchange: Exchange, tenant: str) -> None:
        query = read_query(exchange, ("after", "limit"))
        limit = read_limit(query, 20, 100)

        def read() -> tuple[list[BatchRow], bool]:
            return list_batches(self._database, tenant, after=query.get("after"), limit=limit)

        await respond_page(exchange, self._threads, read, _describe)


def _describe(row: BatchRow) -> dict[str, Any]:
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
        **{f"{name}_at": to_stamp(getattr(row, f"{name}_s")) for name in _TIMES},
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


def _read_body(exchange: Exchange) -> dict[str, Any]:
    body = decode_body(exchange.body)
    for name in body:
        if name not in _FIELDS:
            raise unknown(name)
    return body


def _require_string(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        raise missing_parameter(name)
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
            "'metadata' must be an object with up to 16 keys of up to 64 characters, each with a "
            "string of up to 512 characters.",
            "metadata",
            "invalid_value",
        )
    return dict(value)
