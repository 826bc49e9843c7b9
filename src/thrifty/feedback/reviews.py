"""Reviews: judged answers that chance chose, shown to people who say whether they are good.

A review is feedback itself (`score:review`, 1 or 0). By these a judge's mean is corrected, which needs
answers that chance chose: those that somebody complained about are not like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.db import Database
from thrifty.db.feedback import Feedback, FeedbackLimitError, Item, save_feedback
from thrifty.db.keys import Key
from thrifty.db.scores import REVIEW, Unreviewed, list_unreviewed
from thrifty.errors import DatabaseError
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.lists import (
    Threads,
    encode,
    find_visible_tenant,
    no_such,
    read_limit,
    read_query,
    respond_page,
    unknown,
)
from thrifty.http.exchange import Exchange
from thrifty.openai.bodies import decode_body
from thrifty.openai.errors import RATE_LIMIT, WireError, bad_request, explain_database
from thrifty.openai.response_ids import ResponseIds
from thrifty.types import Role

MAX_PAGE = 100


class ReviewPages:
    """Handles reviews, for operators. Admins see all tenants, others their own."""

    def __init__(self, database: Database, ids: ResponseIds, threads: Threads) -> None:
        self._database = database
        self._ids = ids
        self._threads = threads

    def routes(self) -> list[OwnRoute]:
        """The routes."""
        return [
            OwnRoute(
                "GET", "/v1/feedback/reviews", Role.OPERATOR, self._list,
                "judged answers that nobody has reviewed, as chance chose them",
            ),
            OwnRoute(
                "POST", "/v1/feedback/reviews", Role.OPERATOR, self._take,
                "say whether a judged answer (`response_id`) is `good`",
            ),
        ]  # fmt: skip

    async def _list(self, exchange: Exchange, key: Key | None, _: Any) -> None:
        query = read_query(exchange, ("limit", "tenant"))
        tenant, limit = find_visible_tenant(exchange, key, query), read_limit(query, 10, MAX_PAGE)

        def read() -> tuple[list[Unreviewed], bool]:
            rows = list_unreviewed(self._database, tenant, limit + 1)
            return rows[:limit], len(rows) > limit

        try:
            await respond_page(exchange, self._threads, read, self._describe)
        except DatabaseError as error:
            raise explain_database(error) from None

    def _describe(self, row: Unreviewed) -> dict[str, Any]:
        return {
            "id": self._ids.write(row.id, row.tenant), "object": "feedback.review", "created_at": row.at_s,
            "deployment": row.deployment, "version": row.version,
        }  # fmt: skip

    async def _take(self, exchange: Exchange, key: Key | None, _: Mapping[str, str]) -> None:
        body = decode_body(exchange.body)
        if body.keys() - {"response_id", "good"}:
            raise unknown(next(iter(body.keys() - {"response_id", "good"})))
        named, good = body.get("response_id"), body.get("good")
        if not isinstance(named, str):
            raise bad_request(
                "'response_id' must be the id of a response.", "response_id", "invalid_value"
            )
        if not isinstance(good, bool):
            raise bad_request("'good' must be true or false.", "good", "invalid_value")
        tenant = find_visible_tenant(exchange, key, {})
        number = self._ids.find_number(named, tenant)
        who = key.name if key is not None else "loopback"

        def save() -> bool:
            if number is None:
                return False
            found = list_unreviewed(self._database, tenant, 1, number=number)
            if not found:
                return False
            review = Feedback(
                tenant=found[0].tenant, response=number, items=(Item(REVIEW, float(good)),),
                user=f"console:{who}",
            )  # fmt: skip
            save_feedback(self._database, review)
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
            raise no_such("response", named, "response_id")
        answer = {"object": "feedback.review", "response_id": named, "good": good}
        exchange.respond(201, encode(answer))
