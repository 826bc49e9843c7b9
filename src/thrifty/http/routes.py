"""One table of routes: what answers which method and path, and who may call it.

404, 405 with `Allow`, `OPTIONS` and `HEAD` follow from the table, and so does the list of routes
in the documentation. Exact paths cost one dictionary lookup; paths with parameters are tried after
them, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from thrifty.http.exchange import Exchange
from thrifty.openai.errors import NOT_FOUND, WireError
from thrifty.types import Role

H = TypeVar("H")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PARAMETER = re.compile(r"\{([a-z_][a-z0-9_]*)(:path)?\}")
_NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Route(Generic[H]):
    """What answers one method on one path.

    `path` may hold parameters: `{name}` is one segment, `{name:path}` takes slashes too.
    """

    method: str
    path: str
    role: Role | None
    """The role that a caller must hold, or one that may act as it; None: anybody may call."""
    handler: H
    summary: str
    """What it does, for the documentation: a phrase without a full stop."""
    callers: frozenset[Role] | None = field(init=False)
    """The roles that may call it; None: anybody, without a key too."""

    def __post_init__(self) -> None:
        if self.method not in METHODS[:-1] or self.method == "HEAD" or self.path[:1] != "/":
            raise ValueError(f"{self.method} {self.path} is not a route")
        callers = None if self.role is None else self.role.holders()
        object.__setattr__(self, "callers", callers)


class Found(NamedTuple, Generic[H]):
    """A route that fits a request."""

    route: Route[H]
    parameters: Mapping[str, str]
    """The values of the parameters in its path."""


class RouteTable(Generic[H]):
    """Finds the route for a request."""

    def __init__(self, routes: Iterable[Route[H]]) -> None:
        """Raises `ValueError` where two routes have the same method and path."""
        self.routes = tuple(routes)
        self._exact: dict[tuple[str, str], Found[H]] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, Route[H]]]] = {}
        self._methods: dict[str, set[str]] = {}
        for route in self.routes:
            if route.method in self._methods.setdefault(route.path, set()):
                raise ValueError(f"{route.method} {route.path} is in the table twice")
            self._methods[route.path].add(route.method)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                self._add(method, route)

    def __iter__(self) -> Iterator[Route[H]]:
        """All routes, in their order."""
        return iter(self.routes)

    def find(self, method: str, path: str) -> Found[H] | None:
        """The route for a request; `HEAD` finds the route of `GET`. None where there is none: see
        `answer_unmatched`.
        """
        found = self._exact.get((method, path))
        if found is not None:
            return found
        for pattern, routes in self._patterns.values():
            match = pattern.fullmatch(path)
            if match is not None and method in routes:
                return Found(routes[method], match.groupdict())
        return None

    def methods(self, path: str) -> tuple[str, ...]:
        """The methods that `path` takes, `HEAD` and `OPTIONS` too; empty where nothing is there."""
        if path == "*":
            return METHODS
        taken = {method for method in METHODS if self.find(method, path) is not None}
        return tuple(method for method in METHODS if method in taken | {"OPTIONS"}) if taken else ()

    def answer_unmatched(self, exchange: Exchange) -> None:
        """Answer a request that `find` knows no route for: `OPTIONS` with a 204, CORS preflights
        among them. Raises a 404 or 405 for other methods.
        """
        methods = self.methods(exchange.path)
        if exchange.method != "OPTIONS" or not methods:
            raise self.explain(exchange.method, exchange.path)
        allow = (b"allow", ", ".join(methods).encode())
        cors = exchange.cors
        preflight = [] if cors is None else cors.preflight(exchange.headers, methods)
        exchange.respond(204, b"", [allow, *preflight])

    def explain(self, method: str, path: str) -> WireError:
        """Why there is no route: a 405 that names the methods of `path`, or a 404 that names the
        paths of `method`.
        """
        methods = self.methods(path)
        shown = path if len(path) <= 100 else f"{path[:100]}..."
        if methods:
            allow = ", ".join(methods)
            return WireError(
                405,
                f"{shown} does not take {method}; it takes {allow}.",
                code="method_not_allowed",
                headers=((b"allow", allow.encode()),),
            )
        wanted = "GET" if method == "HEAD" else method
        paths = [route.path for route in self.routes if route.method == wanted]
        there = f" {wanted} is possible on: {', '.join(paths)}." if paths else ""
        return WireError(
            404,
            f"There is nothing at {method} {shown}.{there}",
            type=NOT_FOUND,
            code="unknown_path",
        )

    def _add(self, method: str, route: Route[H]) -> None:
        if "{" not in route.path:
            self._exact[method, route.path] = Found(route, _NO_PARAMETERS)
            return
        if route.path not in self._patterns:
            self._patterns[route.path] = (compile_path(route.path), {})
        self._patterns[route.path][1][method] = route


def compile_path(path: str) -> re.Pattern[str]:
    """The pattern that a path with parameters stands for. Raises `ValueError`."""
    parts: list[str] = []
    position = 0
    for match in _PARAMETER.finditer(path):
        parts.append(re.escape(path[position : match.start()]))
        parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})")
        position = match.end()
    rest = path[position:]
    if "{" in rest or "}" in rest or "{" in "".join(parts).replace(r"\{", "{"):
        raise ValueError(f"{path} holds a parameter that cannot be read")
    try:
        return re.compile("".join(parts) + re.escape(rest))
    except re.error as error:
        raise ValueError(f"{path} holds a parameter that cannot be read: {error}") from None
