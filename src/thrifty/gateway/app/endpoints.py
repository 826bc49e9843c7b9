"""What is not on the path of a request to a model: one table of routes, and who may call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from thrifty.db.keys import Key
from thrifty.gateway.admission.authenticate import authenticate_late
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.routes import Route, RouteTable

Answer = Callable[[Exchange, Key | None, Mapping[str, str]], Awaitable[None]]
"""Answers a request of the holder of a key (None: no keys are needed), with the values of the path's
parameters; may raise a `WireError`."""
OwnRoute = Route[Answer]
"""A route that is answered by the gateway itself."""


class Endpoints:
    """Finds the route, checks the key, answers."""

    def __init__(
        self, table: RoutingTable, reader: TableReader, routes: RouteTable[Answer]
    ) -> None:
        self.routes = routes
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
        await route.handler(exchange, key, found.parameters)
