"""The gateway's own endpoints: one table of routes, with the roles that may call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from thrifty.db.keys import Key
from thrifty.gateway.admission.authenticate import authenticate_late
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.routes import Route, RouteTable
from thrifty.http.same_origin import SameOrigin
from thrifty.openai.errors import PERMISSION, WireError
from thrifty.types import Role

Answer = Callable[[Exchange, Key | None, Mapping[str, str]], Awaitable[None]]
"""Handles a request of the holder of a key (None: no keys are needed), with the values of the
path's parameters; may raise a `WireError`."""
MANAGEMENT = "/api/"
OwnRoute = Route[Answer]
"""A route that the gateway itself handles."""


_MANAGING = frozenset({Role.OPERATOR, Role.ADMIN})
"""Routes of these roles change the service, or show what only operators may see."""


class Endpoints:
    """Finds the route, checks the key and calls the handler."""

    def __init__(
        self,
        table: RoutingTable,
        reader: TableReader,
        routes: RouteTable[Answer],
        same_origin: SameOrigin,
    ) -> None:
        """`same_origin` keeps web pages of other origins from controlling the service."""
        self.routes = routes
        self._same_origin = same_origin
        self._table = table
        self._reader = reader

    async def answer(self, exchange: Exchange) -> None:
        """Answer, or raise a `WireError`."""
        found = self.routes.find(exchange.method, exchange.path)
        if found is None:
            self.routes.answer_unmatched(exchange)
            return
        route, key = found.route, None
        if route.callers is not None:
            key = await authenticate_late(exchange, self._table, self._reader, route.callers)
        if route.role in _MANAGING or route.path.startswith(MANAGEMENT):
            self._same_origin.check(exchange)
        if route.role in _MANAGING and key is None and not exchange.from_this_machine:
            raise WireError(
                403,
                "Without API keys, this is only allowed from this machine. Create a key: thrifty "
                "keys create --name NAME --role admin.",
                type=PERMISSION,
                code="role_not_allowed",
            )
        await route.handler(exchange, key, found.parameters)
