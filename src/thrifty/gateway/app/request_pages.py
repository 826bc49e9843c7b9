"""`GET /v1/requests`: the request log in pages, and one request with its texts, where they are
recorded. A tenant sees its own rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from thrifty.db import Database
from thrifty.db.keys import Key
from thrifty.db.request_queries import LogRow, RequestFilter, list_requests, read_texts
from thrifty.errors import DatabaseError
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.lists import (
    Threads,
    encode,
    find_visible_tenant,
    no_such,
    read_flag,
    read_limit,
    read_query,
    read_time,
    respond_page,
)
from thrifty.http.exchange import Exchange
from thrifty.http.same_origin import SameOrigin
from thrifty.observe.texts import describe_texts
from thrifty.openai.errors import bad_request, explain_database
from thrifty.openai.response_ids import ResponseIds
from thrifty.types import Role

MAX_PAGE = 1000
_NAMES = (
    "limit", "after", "since", "until", "tenant", "id", "conversation_id", "model", "version",
    "user", "origin", "error", "slower_ms", "disliked",
)  # fmt: skip
_MILLISECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")


class RequestPages:
    """Handles requests about the request log."""

    def __init__(self, database: Database, ids: ResponseIds, same_origin: SameOrigin) -> None:
        self._database = database
        self._ids = ids
        self._same_origin = same_origin
        self._threads = Threads("requests")

    def close(self) -> None:
        """Stop the threads."""
        self._threads.close()

    def routes(self) -> list[OwnRoute]:
        """The routes of the request log."""
        return [
            OwnRoute("GET", "/v1/requests", Role.USER, self._list, "the request log"),
            OwnRoute(
                "GET", "/v1/requests/{request}", Role.USER, self._show,
                "one request, with its texts where they are recorded",
            ),
        ]  # fmt: skip

    async def _show(
        self, exchange: Exchange, key: Key | None, parameters: Mapping[str, str]
    ) -> None:
        if key is None:
            self._same_origin.check_page(exchange)
        named = parameters["request"]
        tenant = find_visible_tenant(exchange, key, read_query(exchange, ("tenant",)))
        number = self._ids.find_number(named, tenant)
        if number is None:
            raise no_such("request", named)
        wanted = RequestFilter(tenant=tenant, number=number)

        def read() -> dict[str, Any] | None:
            rows, _ = list_requests(self._database, wanted, limit=1)
            if not rows:
                return None
            texts = read_texts(self._database, number)
            return describe_request(rows[0], self._ids) | describe_texts(texts)

        try:
            found = await self._threads.run(read)
        except DatabaseError as error:
            raise explain_database(error) from None
        if found is None:
            raise no_such("request", named)
        exchange.respond(200, encode(found))

    async def _list(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        if key is None:
            self._same_origin.check_page(exchange)
        query = read_query(exchange, _NAMES)
        tenant = find_visible_tenant(exchange, key, query)
        wanted = self._read_filter(query, tenant)
        limit, before = read_limit(query, 100, MAX_PAGE), None
        if "after" in query:
            before = self._ids.find_number(query["after"], tenant)
            if before is None:
                raise no_such("entry", query["after"], "after")

        def read() -> tuple[list[LogRow], bool]:
            return list_requests(self._database, wanted, before=before, limit=limit)

        try:
            await respond_page(
                exchange, self._threads, read, lambda row: describe_request(row, self._ids)
            )
        except DatabaseError as error:
            raise explain_database(error) from None

    def _read_filter(self, query: Mapping[str, str], tenant: str | None) -> RequestFilter:
        named = query.get("id")
        number = None if named is None else self._ids.find_number(named, tenant)
        return RequestFilter(
            tenant=tenant,
            number=number,
            # What is no id of ours may be the one that the client gave.
            client_request_id=named if number is None else None,
            conversation_id=query.get("conversation_id"),
            deployment=query.get("model"),
            version=query.get("version"),
            user=query.get("user"),
            origin=query.get("origin"),
            error=query.get("error"),
            slower_ms=_read_milliseconds(query),
            disliked=read_flag(query, "disliked"),
            since_s=read_time(query, "since"),
            until_s=read_time(query, "until"),
        )


def describe_request(row: LogRow, ids: ResponseIds) -> dict[str, Any]:
    """A row of the request log as JSON shows it; `id` is the response's."""
    found = dict(row)
    tenant = found["tenant"] or ""
    number, shadow = found.pop("id"), found.pop("shadow_of")
    tags = found.pop("tags")
    return {
        "id": ids.write(number, tenant),
        "object": "request",
        "created_at": found.pop("at_s"),
        "user": found.pop("end_user"),
        **found,
        "shadow_of": ids.write(shadow, tenant) if shadow is not None else None,
        "tags": msgspec.json.decode(tags) if tags else {},
    }


def _read_milliseconds(query: Mapping[str, str]) -> float | None:
    text = query.get("slower_ms")
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text):
        raise bad_request(
            f"'slower_ms' must be a number of milliseconds, not {text[:60]!r}.",
            "slower_ms",
            "invalid_value",
        )
    return float(text)
