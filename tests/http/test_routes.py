"""The table of routes: what it finds, and what follows from it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.raw import serving
from thrifty.http.exchange import Exchange
from thrifty.http.routes import Route, RouteTable, compile_path
from thrifty.types import Role

ROUTES = [
    Route("POST", "/v1/chat/completions", Role.USER, "chat", "chat"),
    Route("GET", "/v1/files", Role.USER, "list", "list files"),
    Route("POST", "/v1/files", Role.USER, "upload", "upload a file"),
    Route("GET", "/v1/files/{id}", Role.USER, "file", "a file"),
    Route("DELETE", "/v1/files/{id}", Role.USER, "delete", "delete a file"),
    Route("GET", "/v1/files/{id}/content", Role.USER, "content", "a file's content"),
    Route("GET", "/v1/models/{name:path}", Role.USER, "model", "one model"),
    Route("GET", "/v1/models/all", Role.USER, "all", "an exact path goes first"),
    Route("PUT", "/v1/a+b/{x}.{y}", Role.ADMIN, "dots", "literals are literal"),
    Route("GET", "/healthz", None, "health", "200 while the gateway runs"),
]
TABLE = RouteTable(ROUTES)


@pytest.mark.parametrize(
    ("method", "path", "handler", "parameters"),
    [
        ("POST", "/v1/chat/completions", "chat", {}),
        ("GET", "/v1/files", "list", {}),
        ("POST", "/v1/files", "upload", {}),
        ("HEAD", "/v1/files", "list", {}),
        ("GET", "/v1/files/f1", "file", {"id": "f1"}),
        ("HEAD", "/v1/files/f1", "file", {"id": "f1"}),
        ("DELETE", "/v1/files/f1", "delete", {"id": "f1"}),
        ("GET", "/v1/files/f1/content", "content", {"id": "f1"}),
        ("GET", "/v1/models/org/model", "model", {"name": "org/model"}),
        ("GET", "/v1/models/all", "all", {}),
        ("PUT", "/v1/a+b/1.2", "dots", {"x": "1", "y": "2"}),
    ],
)
def test_routes_are_found(method: str, path: str, handler: str, parameters: dict[str, str]) -> None:
    found = TABLE.find(method, path)
    assert found is not None
    assert (found.route.handler, dict(found.parameters)) == (handler, parameters)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"), ("HEAD", "/v1/chat/completions"), ("GET", "/"),
        ("GET", "/v1/files/"), ("GET", "/v1/files/a/b"), ("GET", "/v1/models/"),
        ("PUT", "/v1/aab/1.2"), ("PUT", "/v1/a+b/12"), ("get", "/healthz"), ("GET", "/healthz/"),
        ("GET", "//healthz"), ("OPTIONS", "/healthz"), ("GET", ""),
    ],
)  # fmt: skip
def test_what_is_not_in_the_table_is_not_found(method: str, path: str) -> None:
    assert TABLE.find(method, path) is None


@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "OPTIONS", "\0"]))
def test_any_path_is_found_or_explained(path: str, method: str) -> None:
    found = TABLE.find(method, path)
    if found is None:
        error = TABLE.explain(method, path)
        assert error.status in (404, 405)
        assert (error.status == 405) == bool(TABLE.methods(path))


@given(st.from_regex(r"[^/]{1,20}", fullmatch=True))
def test_a_parameter_is_one_segment(value: str) -> None:
    found = TABLE.find("GET", f"/v1/files/{value}/content")
    assert found is not None
    assert found.parameters == {"id": value}


def test_the_table_keeps_its_order_and_refuses_doubles() -> None:
    assert list(TABLE) == ROUTES
    with pytest.raises(ValueError, match="GET /healthz is in the table twice"):
        RouteTable([*ROUTES, ROUTES[-1]])


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/a"), ("OPTIONS", "/a"), ("get", "/a"), ("GET", "a")]
)
def test_a_route_must_be_one(method: str, path: str) -> None:
    with pytest.raises(ValueError, match="is not a route"):
        Route(method, path, None, "", "")


@pytest.mark.parametrize("path", ["/{", "/{a", "/{A}", "/{a}{", "/{a}/{a}", "/a}", "/{a:int}"])
def test_parameters_that_cannot_be_read_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=re.escape(path)):
        compile_path(path)


def test_roles_say_who_may_call() -> None:
    assert ROUTES[0].callers == {Role.USER, Role.OPERATOR, Role.ADMIN}
    assert ROUTES[8].callers == {Role.ADMIN}
    assert ROUTES[9].callers is None


def handle(exchange: Exchange) -> None:
    found = TABLE.find(exchange.method, exchange.path)
    if found is None:
        TABLE.answer_unmatched(exchange)
    else:
        exchange.respond(200, found.route.handler.encode())


async def test_unmatched_requests_are_answered_from_the_table() -> None:
    async with serving(handle) as served, served.connect() as client:

        async def ask(method: str, path: str) -> tuple[int, str | None, bytes]:
            await client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            answer = await client.read_answer(to_head=method == "HEAD")
            return answer.status, answer.headers.get("allow"), answer.body

        assert await ask("OPTIONS", "/v1/files") == (204, "GET, HEAD, POST, OPTIONS", b"")
        assert await ask("OPTIONS", "/v1/files/f") == (204, "GET, HEAD, DELETE, OPTIONS", b"")
        assert (await ask("OPTIONS", "*"))[:2] == (
            204, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        )  # fmt: skip
        assert (await ask("OPTIONS", "/nothing"))[0] == 404
        assert await ask("HEAD", "/healthz") == (200, None, b"")
        status, allow, body = await ask("GET", "/v1/chat/completions")
        assert (status, allow) == (405, "POST, OPTIONS")
        assert json.loads(body)["error"] == {
            "message": "/v1/chat/completions does not take GET; it takes POST, OPTIONS.",
            "type": "invalid_request_error", "param": None, "code": "method_not_allowed",
        }  # fmt: skip
        status, allow, body = await ask("POST", "/v1/responses")
        error = json.loads(body)["error"]
        assert (status, allow, error["code"]) == (404, None, "unknown_path")
        assert error["message"] == (
            "There is nothing at POST /v1/responses. POST is possible on: "
            "/v1/chat/completions, /v1/files."
        )
        long = await ask("GET", "/" + "x" * 5000)
        assert long[0] == 404
        assert len(long[2]) < 1000
