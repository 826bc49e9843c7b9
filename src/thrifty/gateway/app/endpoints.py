"""The gateway's own endpoints: one table of routes, with the roles that may call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from thrifty.db.keys import Key
from thrifty.gateway.admission.authenticate import authenticate_late
from thrifty.gateway.state.reader import TableReader
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.exchange import Exchange
from thrifty.http.routes import Route, RouteTable
from thrifty.http.same_origin import SameOrigin
from thrifty.openai.errors import NOT_FOUND, PERMISSION, WireError
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
        path = exchange.path
        if ("//" in path or path.endswith("/")) and self._redirect(exchange):
            return
        found = self.routes.find(exchange.method, path)
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

    def _redirect(self, exchange: Exchange) -> bool:
        """Redirect from a path with needless slashes, such as `//v1/models/`, to the same one
        without them; returns whether there is one.

        It is not served as it is, because a proxy in front may allow and forbid paths by how they
        are written. A 308 keeps the method and the body.
        """
        path = "/" + "/".join(part for part in exchange.path.split("/") if part)
        if path == exchange.path or not self.routes.methods(path):
            return False
        location = quote(path).encode() + (b"?%b" % exchange.query if exchange.query else b"")
        error = WireError(
            308,
            f"This path is written {path[:100]}.",
            type=NOT_FOUND,
            code="moved",
            headers=((b"location", location),),
        )
        exchange.respond_error(error)
        return True
