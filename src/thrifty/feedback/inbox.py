"""What people who look through feedback do: mark it as looked at, and export training rows.

A mark is feedback itself (`score:triage`, with a label as its value), so that it has a history, is
erased with the rest, and shows which label a person gave.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from thrifty.db import Database
from thrifty.db.erasures import note_export
from thrifty.db.feedback import (
    TRIAGE,
    Feedback,
    FeedbackLimitError,
    Item,
    find_feedback,
    save_feedback,
)
from thrifty.db.keys import Key
from thrifty.db.subjects import open_subjects
from thrifty.errors import DatabaseError
from thrifty.feedback.export import Chosen, Form, Skipped, export_rows
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.lists import (
    Threads,
    encode,
    find_visible_tenant,
    no_such,
    read_cursor,
    read_query,
    read_time,
    unknown,
)
from thrifty.http.exchange import Exchange
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import (
    RATE_LIMIT,
    WireError,
    bad_request,
    explain_database,
    list_names,
)
from thrifty.types import Role

EXPORT_ROWS = 50
"""Rows of an export that are made and written together."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


class InboxPages:
    """Handles triage and export, for operators. Admins see all tenants, others their own."""

    def __init__(self, database: Database, threads: Threads) -> None:
        self._database = database
        self._threads = threads

    def routes(self) -> list[OwnRoute]:
        """The routes."""
        return [
            OwnRoute(
                "POST", "/v1/feedback/{feedback}/triage", Role.OPERATOR, self._triage,
                "say that feedback was looked at, with a `label`",
            ),
            OwnRoute(
                "GET", "/v1/feedback/export", Role.OPERATOR, self._export,
                "training rows made from feedback, as JSON lines",
            ),
        ]  # fmt: skip

    async def _triage(
        self, exchange: Exchange, key: Key | None, parameters: Mapping[str, str]
    ) -> None:
        body = decode_body(exchange.body)
        if body.keys() - {"label"}:
            raise unknown(next(iter(body.keys() - {"label"})))
        label = body.get("label")
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise bad_request(
                "'label' must be 1 to 64 letters, digits, spaces, '_', '.' or '-'.",
                "label",
                "invalid_value",
            )
        number = read_cursor({"after": parameters["feedback"]}, "fb-")
        tenant = find_visible_tenant(exchange, key, {})
        who = key.name if key is not None else "loopback"

        def save() -> bool:
            found = find_feedback(self._database, number or 0, tenant)
            if found is None:
                return False
            mark = Feedback(
                tenant=found[0], response=found[1], conversation_id=found[2],
                items=(Item(TRIAGE, text=label),), user=f"console:{who}",
            )  # fmt: skip
            save_feedback(self._database, mark)
            return True

        try:
            known = await self._threads.run(save)
        except FeedbackLimitError as error:
            raise WireError(
                429, f"{error}.", type=RATE_LIMIT, code="feedback_limit", retry_after_s=3600.0
            ) from None
        except DatabaseError as error:
            raise explain_database(error) from None
        if not known:
            raise no_such("feedback", parameters["feedback"])
        answer = {"id": parameters["feedback"], "object": "feedback.triage", "label": label}
        exchange.respond(200, encode(answer))

    async def _export(self, exchange: Exchange, key: Key | None, _: Mapping[str, str]) -> None:
        query = read_query(exchange, ("as", "tenant", "model", "version", "since"))
        chosen = Chosen(
            tenant=find_visible_tenant(exchange, key, query), deployment=query.get("model"),
            version=query.get("version"), since_s=read_time(query, "since"),
        )  # fmt: skip
        try:
            form = Form(query.get("as", ""))
        except ValueError:
            raise bad_request(
                f"'as' must be one of {list_names(Form)}.", "as", "invalid_value"
            ) from None
        who = f"{key.name if key is not None else 'loopback'} (GET /v1/feedback/export)"
        try:
            rows = await self._threads.run(self._begin_export, form, chosen, who)
            exchange.start(200, _make_export_headers(form))
            while True:
                piece = await self._threads.run(_take_lines, rows)
                if not piece:
                    break
                exchange.write(piece)
                await exchange.drain()
        except DatabaseError as error:
            if exchange.started:
                exchange.abort()  # no client takes a part for the whole
                return
            raise explain_database(error) from None
        exchange.finish()

    def _begin_export(self, form: Form, chosen: Chosen, who: str) -> Iterator[dict[str, Any]]:
        note_export(self._database, None, form, who=who)
        return export_rows(self._database, form, open_subjects(self._database), Skipped(), chosen)


def _make_export_headers(form: Form) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/jsonl; charset=utf-8"),
        (b"content-disposition", b'attachment; filename="feedback-%b.jsonl"' % form.encode()),
        (b"cache-control", b"no-store"),
    ]


def _take_lines(rows: Iterator[dict[str, Any]]) -> bytes:
    """The next rows as lines; empty at the end."""
    return b"".join(encode(row) + b"\n" for row in itertools.islice(rows, EXPORT_ROWS))
