"""The endpoints of feedback. Only a database knows what is new, so they answer from a few threads;
nothing of this is on the path of a request to a model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import msgspec

from thrifty.db import Database
from thrifty.db.feedback import (
    Feedback,
    FeedbackFilter,
    FeedbackLimitError,
    FeedbackRow,
    Saved,
    list_feedback,
    read_history,
    save_feedback,
)
from thrifty.db.keys import Key
from thrifty.errors import DatabaseError, NameTakenError, RedactionError
from thrifty.feedback.inbox import InboxPages
from thrifty.feedback.parse import ParsedFeedback, parse_feedback
from thrifty.feedback.rates import Rates
from thrifty.feedback.reviews import ReviewPages
from thrifty.gateway.admission.authenticate import authenticate_late
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.lists import (
    Threads,
    encode,
    find_visible_tenant,
    no_such,
    read_cursor,
    read_flag,
    read_limit,
    read_query,
    read_tenant,
    read_time,
)
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.same_origin import SameOrigin
from thrifty.observe.redact import Redact, Redactor, redact_together
from thrifty.observe.texts import redact_json
from thrifty.openai.bodies import decode_body
from thrifty.openai.conversations import Conversations
from thrifty.openai.errors import (
    AUTHENTICATION,
    RATE_LIMIT,
    WireError,
    bad_request,
    explain_database,
    unavailable,
)
from thrifty.openai.feedback_tokens import HEADER, FeedbackTokens, TokenHolder
from thrifty.openai.response_ids import ResponseIds, read_time_s
from thrifty.types import Role

MAX_BODY_BYTES = 500_000
"""A correction of 100,000 characters, however it is written."""
MAX_PAGE = 1000
_LIST_QUERY = ("limit", "after", "since", "until", "tenant", "untriaged")
_FILTERS = ("response_id", "conversation_id", "kind", "model", "version", "user")
_CALLERS = Role.USER.holders()
_HEADER = HEADER.encode()
_SCRIPT = files(__package__).joinpath("feedback.js").read_bytes()


class FeedbackSettings(msgspec.Struct, frozen=True):
    """What the spec says about feedback. The limits are pieces of feedback a minute."""

    tokens: bool = False
    """Whether each answer comes with a token."""
    token_ttl_s: float = 7 * 86400.0
    """How long after its response a token is good."""
    per_user: float = 60.0
    per_tenant: float = 6000.0


class FeedbackPages:
    """Handles requests about feedback."""

    def __init__(
        self,
        *,
        database: Database,
        table: RoutingTable,
        reader: TableReader,
        ids: ResponseIds,
        conversations: Conversations,
        tokens: FeedbackTokens,
        same_origin: SameOrigin,
        settings: FeedbackSettings,
        keep_s: float,
        redactor: Redactor | None,
    ) -> None:
        """`keep_s` is how long responses are remembered; feedback on older ones is refused.
        `redactor` puts pseudonyms into texts before they are stored; None leaves them alone.
        """
        self._database = database
        self._table = table
        self._reader = reader
        self._ids = ids
        self._conversations = conversations
        self._tokens = tokens
        self._same_origin = same_origin
        self._settings = settings
        self._keep_s = keep_s
        self._redactor = redactor
        self._rates = Rates(settings.per_user, settings.per_tenant)
        self._threads = Threads("feedback")
        self._inbox = InboxPages(database, self._threads)
        self._reviews = ReviewPages(database, ids, self._threads)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.close()

    def routes(self) -> list[OwnRoute]:
        """The routes of feedback. `POST` checks its caller itself, because a token may stand for a
        key.
        """
        return [
            OwnRoute(
                "POST", "/v1/feedback", None, self._take,
                "give feedback on a response or a conversation, with a `user` key or a token",
            ),
            OwnRoute("GET", "/v1/feedback", Role.USER, self._list, "the feedback"),
            OwnRoute(
                "GET", "/v1/feedback.js", None, self._send_script, "the helper for web pages"
            ),
            *self._inbox.routes(),
            *self._reviews.routes(),
        ]  # fmt: skip

    async def _send_script(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        headers = [
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"cache-control", b"max-age=3600"),
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"cross-origin"),
        ]
        exchange.respond(200, _SCRIPT, headers)

    async def _take(self, exchange: Exchange, _: Key | None, __: Any) -> None:
        holder, key = None, None
        given = exchange.headers.get(_HEADER)
        if given is not None:
            holder = self._read_token(given)
        else:
            key = await authenticate_late(exchange, self._table, self._reader, _CALLERS)
            if key is None:
                self._same_origin.check_page(exchange)
        if len(exchange.body) > MAX_BODY_BYTES:
            raise WireError(
                413,
                f"Feedback may have {MAX_BODY_BYTES} bytes, not {len(exchange.body)}.",
                code="body_too_large",
            )
        parsed = parse_feedback(decode_body(exchange.body))
        feedback = self._place(parsed, read_tenant(key), holder)
        target = feedback.conversation_id or str(feedback.response)
        self._rates.admit(feedback.tenant, feedback.user or f"\0{target}")
        saved = await self._save(feedback)
        exchange.respond(201 if saved.created else 200, encode(_describe_saved(parsed, saved)))

    async def _save(self, feedback: Feedback) -> Saved:
        try:
            saved: Saved = await self._threads.run(self._store, feedback)
        except NameTakenError as error:
            raise WireError(409, f"{error}.", param="id", code="id_taken") from None
        except FeedbackLimitError as error:
            raise WireError(
                429, f"{error}.", type=RATE_LIMIT, code="feedback_limit", retry_after_s=3600.0
            ) from None
        except RedactionError:
            raise unavailable(
                "names in texts cannot be found now, and so they are not stored; retry later, or leave "
                "'comment', 'correction' and 'tags' out", "redaction_away", 30.0,
            ) from None  # fmt: skip
        except DatabaseError as error:
            raise explain_database(error) from None
        return saved

    def _store(self, feedback: Feedback) -> Saved:
        """Redact and save; runs on a thread."""
        if self._redactor is not None:
            feedback = _redact(feedback, self._redactor)
        return save_feedback(self._database, feedback)

    def _read_token(self, token: bytes) -> TokenHolder:
        holder = self._tokens.read(token)
        if (
            holder is None
            or read_time_s(holder.response) < time.time() - self._settings.token_ttl_s
        ):
            raise WireError(
                401,
                f"The header '{HEADER}' does not hold a valid token: it comes with an answer, where "
                "the spec says 'feedback: {tokens: true}', and expires.",
                type=AUTHENTICATION,
                code="invalid_feedback_token",
            )
        return holder

    def _place(self, parsed: ParsedFeedback, tenant: str, holder: TokenHolder | None) -> Feedback:
        """What the feedback is about. Raises a 404 if that is not the caller's, and a 410 if it is
        older than what is kept.
        """
        number = None
        if holder is not None:
            tenant = holder.tenant
            if parsed.user is not None:
                raise bad_request(
                    "A token stands for the user of its response; remove 'user'.",
                    "user",
                    "invalid_value",
                )
        if parsed.response_id is not None:
            number = self._ids.parse(parsed.response_id, tenant)
            if number is None or (holder is not None and number != holder.response):
                raise no_such("response", parsed.response_id, "response_id")
            if read_time_s(number) < time.time() - self._keep_s:
                raise WireError(
                    410,
                    f"The response {parsed.response_id[:100]!r} is older than what is kept "
                    "(record.keep).",
                    param="response_id",
                    code="response_expired",
                )
        elif parsed.conversation_id is not None and (
            holder is not None or not self._conversations.is_ours(parsed.conversation_id, tenant)
        ):
            raise no_such("conversation", parsed.conversation_id, "conversation_id")
        return Feedback(
            tenant=tenant,
            items=parsed.items,
            response=number,
            conversation_id=parsed.conversation_id,
            user=parsed.user,
            client_id=parsed.client_id,
            tags=parsed.tags,
            by_token=holder is not None,
        )

    async def _list(self, exchange: Exchange, key: Key | None, _: Mapping[str, str]) -> None:
        if key is None:
            self._same_origin.check_page(exchange)
        query = read_query(exchange, (*_LIST_QUERY, *_FILTERS))
        tenant = find_visible_tenant(exchange, key, query)
        number = None
        if "response_id" in query:
            number = self._ids.find_number(query["response_id"], tenant)
            if number is None:
                raise no_such("response", query["response_id"], "response_id")
        wanted = FeedbackFilter(
            tenant=tenant,
            response=number,
            conversation_id=query.get("conversation_id"),
            kind=query.get("kind"),
            deployment=query.get("model"),
            version=query.get("version"),
            user=query.get("user"),
            since_s=read_time(query, "since"),
            until_s=read_time(query, "until"),
            untriaged=read_flag(query, "untriaged"),
        )
        limit, before = read_limit(query, 100, MAX_PAGE), read_cursor(query, "fb-")

        def read() -> tuple[list[dict[str, Any]], bool]:
            rows, more = list_feedback(self._database, wanted, before=before, limit=limit)
            replaced = [row.id for row in rows if row.changes]
            history = read_history(self._database, replaced) if replaced else {}
            return [self._describe(row, history.get(row.id, [])) for row in rows], more

        try:
            data, more = await self._threads.run(read)
        except DatabaseError as error:
            raise explain_database(error) from None
        exchange.respond(
            200,
            encode(
                {
                    "object": "list",
                    "data": data,
                    "first_id": data[0]["id"] if data else None,
                    "last_id": data[-1]["id"] if data else None,
                    "has_more": more,
                }
            ),
        )

    def _describe(self, row: FeedbackRow, history: list[Any]) -> dict[str, Any]:
        return describe_feedback(row, history) | {
            "response_id": self._ids.write(row.response, row.tenant) if row.response else None
        }


def _redact(feedback: Feedback, redactor: Redactor) -> Feedback:
    def apply(redact: Redact) -> Feedback:
        items = tuple(
            item if item.text is None else replace(item, text=redact(item.text))
            for item in feedback.items
        )
        tags = None if feedback.tags is None else redact_json(feedback.tags, redact)
        return replace(feedback, items=items, tags=tags)

    if feedback.client_id is not None:
        client_id = redactor.prepare([], feedback.tenant)(feedback.client_id)
        feedback = replace(feedback, client_id=client_id)
    return redact_together(apply, lambda texts: redactor.prepare(texts, feedback.tenant))


def describe_feedback(row: FeedbackRow, history: list[Any]) -> dict[str, Any]:
    """One piece of feedback as JSON shows it."""
    kind, _, name = row.kind.partition(":")
    return {
        "id": f"fb-{row.id}",
        "object": "feedback",
        "kind": kind,
        "name": name or None,
        "value": row.value,
        "text": row.text,
        "tags": msgspec.json.decode(row.tags) if row.tags else {},
        "client_id": row.client_id,
        "response_id": None,
        "conversation_id": row.conversation_id,
        "user": row.user,
        "tenant": row.tenant,
        "source": row.source,
        "created_at": row.at_s,
        "updated_at": row.updated_s,
        "history": [
            {"at": earlier.at_s, "value": earlier.value, "text": earlier.text}
            for earlier in history
        ],
        "joined": row.joined is not None,
        "deployment": row.deployment,
        "version": row.version,
        "replica": row.replica,
        "cache": row.cache,
    }


def _describe_saved(parsed: ParsedFeedback, saved: Saved) -> dict[str, Any]:
    return {
        "object": "feedback",
        "id": parsed.client_id or f"fb-{saved.ids[0]}",
        "response_id": parsed.response_id,
        "conversation_id": parsed.conversation_id,
        "kinds": [item.kind for item in parsed.items],
        "created": saved.created,
        "joined": saved.joined,
    }
