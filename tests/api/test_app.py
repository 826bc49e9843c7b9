"""The management API as clients meet it: behind the bridge, our server and the origin check."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import pytest

from tests.api.services import MemoryServices
from tests.http.raw import wait_for
from tests.parts import running_server
from thrifty.api.app import HANDLERS, make_api
from thrifty.api.cost_models import BudgetModel, CostAnswer, CostQuery
from thrifty.api.page import outline
from thrifty.api.table import API_ROUTES
from thrifty.errors import BadDataError, DatabaseError
from thrifty.http.asgi import AsgiBridge
from thrifty.http.exchange import Exchange
from thrifty.http.routes import RouteTable
from thrifty.http.same_origin import SameOrigin
from thrifty.types import Role

TABLE = RouteTable(API_ROUTES)
TRAFFIC = "/api/v1/deployments/chat/traffic"


@contextlib.asynccontextmanager
async def serving(
    services: MemoryServices, caller: str | None = "ann", tenant: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The API, as the gateway puts it together, and a client of it."""
    bridge = AsgiBridge(make_api(services))
    policy = SameOrigin()

    def handle(exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        if TABLE.find(exchange.method, exchange.path) is None:
            TABLE.answer_unmatched(exchange)
            return None
        policy.check(exchange)
        return bridge.answer(exchange, {"caller": caller, "tenant": tenant})

    await bridge.start()
    try:
        async with running_server(handle) as (url, _), httpx.AsyncClient(base_url=url) as client:
            yield client
    finally:
        await bridge.stop()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error  # type: ignore[no-any-return]


async def test_the_status_is_told() -> None:
    async with serving(MemoryServices()) as client:
        answer = await client.get("/api/v1/status")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        (deployment,) = answer.json()["deployments"]
        assert [(v["label"], v["weight"]) for v in deployment["versions"]] == [("a", 90), ("b", 10)]
        assert [(r["id"], r["version"]) for r in deployment["replicas"]] == [
            ("a-0", "a"), ("b-0", "b"),
        ]  # fmt: skip
        assert answer.json()["gateway"] == {"url": "http://127.0.0.1:8080"}
        head = await client.head("/api/v1/status")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]


async def test_traffic_is_read_changed_and_rolled_back() -> None:
    services = MemoryServices()
    async with serving(services) as client:
        assert (await client.get(TRAFFIC)).json()["weights"] == {"a": 90, "b": 10}
        answer = await client.put(TRAFFIC, json={"weights": {"b": 30}, "why": "it is better"})
        assert answer.json() == {
            "deployment": "chat", "versions": [], "weights": {"a": 90, "b": 30},
            "owner": "traffic",
        }  # fmt: skip
        undone = await client.post("/api/v1/deployments/chat/rollback")
        assert (undone.status_code, undone.json()["kind"]) == (200, "rollback")
        assert services.weights == {"a": 90, "b": 10}
        again = await client.post("/api/v1/deployments/chat/rollback", json={"why": "redo"})
        assert again.status_code == 200
        assert services.weights == {"a": 90, "b": 30}
        assert services.changes == [
            ("traffic", "ann", "it is better"), ("rollback", "ann", ""), ("rollback", "ann", "redo"),
        ]  # fmt: skip


async def test_without_keys_loopback_is_who_calls() -> None:
    services = MemoryServices()
    async with serving(services, caller=None) as client:
        await client.put(TRAFFIC, json={"weights": {"b": 30}})
    assert services.changes == [("traffic", "loopback", "")]


async def test_specs_are_planned_and_applied() -> None:
    services = MemoryServices()
    async with serving(services) as client:
        planned = await client.post("/api/v1/plan", json={"spec": {"model": "m"}})
        step = {"what": "m", "size_bytes": 100, "seconds": 1.5, "why": "it is new"}
        assert planned.json() == {
            "fetch": [step], "choose": [], "prepare": [], "start": [], "stop": [], "change": [],
        }  # fmt: skip
        assert not services.applied
        applied = await client.post("/api/v1/apply", json={"spec": {"model": "m"}})
        assert applied.json() == {"plan": planned.json(), "held": ["chat: weights"]}
        body = {"spec": {"model": "m"}, "reset": True, "why": "start over"}
        assert (await client.post("/api/v1/apply", json=body)).json()["held"] == []
        assert services.changes == [("apply", "ann", ""), ("reset", "ann", "start over")]
        refused = await client.post("/api/v1/apply", json={"spec": {"modle": "m"}})
        error = error_of(refused)
        assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_spec", "spec")
        assert "did you mean 'model'?" in error["message"]
        assert len(services.applied) == 2


async def test_keys_are_made_listed_and_revoked() -> None:
    async with serving(MemoryServices()) as client:
        body = {"name": "bob", "role": "operator", "limits": {"rpm": 5}}
        made = await client.post("/api/v1/keys", json=body)
        assert made.status_code == 201
        assert made.json()["secret"] == "sk-thrifty-secret"
        assert made.headers["cache-control"] == "no-store"
        listed = (await client.get("/api/v1/keys")).json()["keys"]
        assert [(key["name"], key["role"], key["limits"]["rpm"]) for key in listed] == [
            ("bob", "operator", 5)
        ]
        assert "secret" not in str(listed)
        twice = await client.post("/api/v1/keys", json=body)
        assert (twice.status_code, error_of(twice)["code"]) == (400, "refused")
        assert (await client.delete("/api/v1/keys/bob")).json() == {"revoked": "bob"}
        gone = await client.delete("/api/v1/keys/bob")
        assert (gone.status_code, error_of(gone)["code"]) == (404, "key_not_found")
        old = await client.post("/api/v1/keys", json={"name": "mo", "role": "monitor"})
        assert (old.status_code, old.json()["key"]["role"]) == (201, "viewer")


async def test_series_are_asked_for_by_a_closed_set_of_names() -> None:
    services = MemoryServices()
    async with serving(services) as client:
        path = "/api/v1/series?metrics=requests,ttft_p95&by=version&step=minute&from=60&to=120"
        answer = await client.get(path)
        assert answer.status_code == 200
        (series,) = answer.json()["series"]
        assert series == {"labels": {}, "values": {"requests": [1, None], "ttft_p95": [1, None]}}
        assert services.asked is not None
        assert (services.asked.by, services.asked.from_s, services.asked.to_s) == (
            "version", 60, 120,
        )  # fmt: skip
        for query, param in (("bye=version", "bye"), ("from=then", "from"), ("to=-1", "to")):
            refused = await client.get(f"/api/v1/series?{query}")
            assert (refused.status_code, error_of(refused)["param"]) == (400, param)
        refused = await client.get("/api/v1/series?metrics=nonsense")
        assert (refused.status_code, error_of(refused)["code"]) == (400, "refused")


async def test_costs_are_told() -> None:
    async with serving(MemoryServices()) as client:
        answer = await client.get("/api/v1/cost?by=tenant&from=0")
        assert (answer.status_code, answer.json()["from"], answer.json()["to"]) == (200, 0, 1.0)
        assert answer.json()["total"]["cost"] == 0
        for query in ("by=nonsense", "price_per_hour=-1", "since=7d"):
            assert (await client.get(f"/api/v1/cost?{query}")).status_code == 400


class SpendingServices(MemoryServices):
    """With two tenants that spend."""

    def get_cost(self, asked: CostQuery) -> CostAnswer:
        empty = super().get_cost(asked)
        labels = [("tenant", "red"), ("tenant", "blue"), ("no tenant", "")]
        lines = [empty.total.model_copy(update={"of": of, "tenant": name}) for of, name in labels]
        budgets = [
            BudgetModel(
                of=of, name=name, spent=1.0, budget=2.0, forecast=None, forecast_low=None,
                forecast_high=None, basis="",
            )
            for of, name in [("machine", ""), ("tenant", "red"), ("tenant", "blue")]
        ]  # fmt: skip
        return empty.model_copy(update={"lines": lines, "budgets": budgets})


async def test_of_tenants_callers_see_their_own_and_admins_all() -> None:
    services = SpendingServices()
    async with serving(services, tenant="red") as client:
        assert (await client.get("/api/v1/series?by=tenant")).status_code == 200
        assert services.asked is not None
        assert services.asked.tenant == "red"
        assert (await client.get("/api/v1/series?tenant=red")).status_code == 200
        refused = await client.get("/api/v1/series?tenant=blue")
        assert (refused.status_code, error_of(refused)["code"]) == (403, "role_not_allowed")
        assert (await client.get("/api/v1/series?by=version")).status_code == 200
        assert services.asked.tenant is None
        cost = await client.get("/api/v1/cost?by=tenant")
        assert "blue" not in cost.text
        assert [line["tenant"] for line in cost.json()["lines"]] == ["red", ""]
        assert [one["name"] for one in cost.json()["budgets"]] == ["", "red"]
    async with serving(services) as client:
        assert (await client.get("/api/v1/series?tenant=blue")).status_code == 200
        assert "blue" in (await client.get("/api/v1/cost?by=tenant")).text


# Errors


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "weights", "missing_required_parameter"),
        ({"weights": {}}, "weights", "invalid_value"),
        ({"weights": {"a": -1}}, "weights.a", "invalid_value"),
        ({"weights": {"a": "many"}}, "weights.a", "invalid_value"),
        ({"weights": {"a b": 1}}, "weights.a b", "invalid_value"),
        ({"weights": {"a": 1}, "wy": "typo"}, "wy", "unknown_parameter"),
        ({"weights": {"a": 1}, "why": "x" * 1001}, "why", "invalid_value"),
        ({"weights": {"a": 0, "b": 0}}, "weights", "invalid_value"),
        ({"weights": {str(n): 1 for n in range(101)}}, "weights", "invalid_value"),
        ([], None, "invalid_value"),
        (None, None, "invalid_value"),
    ],
)
async def test_mistakes_are_named(body: Any, param: str | None, code: str) -> None:
    services = MemoryServices()
    async with serving(services) as client:
        answer = await client.put(TRAFFIC, json=body)
        assert answer.status_code == 400
        error = error_of(answer)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert error["code"] == code or body is None
        assert "Extra inputs" not in error["message"]
        if code == "unknown_parameter":
            assert error["message"] == (
                "'wy' is not a known key; known here: 'weights', 'force', 'why'."
            )
        assert not services.changes


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff", b'{"weights": NaN}', b'{"weights": {"a": NaN}}']
)
async def test_what_is_no_json_is_refused(body: bytes) -> None:
    async with serving(MemoryServices()) as client:
        headers = {"content-type": "application/json"}
        answer = await client.put(TRAFFIC, content=body, headers=headers)
        assert answer.status_code == 400
        error_of(answer)


async def test_what_is_not_there_is_a_404_and_another_method_a_405() -> None:
    async with serving(MemoryServices()) as client:
        answer = await client.get("/api/v1/deployments/nothing/traffic")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "deployment_not_found")
        answer = await client.put(TRAFFIC, json={"weights": {"c": 1}})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "version_not_found")
        answer = await client.post("/api/v1/deployments/chat/rollback")
        assert (answer.status_code, error_of(answer)["code"]) == (409, "nothing_before")
        answer = await client.delete(TRAFFIC)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PUT, OPTIONS")
        assert (await client.get("/api/v1/status/")).status_code == 404
        assert (await client.options(TRAFFIC)).headers["allow"] == "GET, HEAD, PUT, OPTIONS"


async def test_faults_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    services = MemoryServices()
    async with serving(services) as client:
        services.fails = DatabaseError("connection refused by 10.0.0.1")
        answer = await client.get("/api/v1/status")
        assert (answer.status_code, error_of(answer)["code"]) == (503, "database_away")
        assert answer.headers["retry-after"] == "5"
        services.fails = BadDataError("the value is too large")
        answer = await client.get("/api/v1/status")
        assert (answer.status_code, error_of(answer)["code"]) == (400, "refused")
        services.fails = ValueError("a secret")
        answer = await client.get("/api/v1/status")
        assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert "ValueError: a secret" in caplog.text
        services.fails = None
        assert (await client.get("/api/v1/status")).status_code == 200


async def test_pages_of_other_sites_are_refused() -> None:
    services = MemoryServices()
    async with serving(services) as client:
        for headers, status in (
            ({"origin": "https://evil.example"}, 403),
            ({"host": "rebound.example"}, 403),
            ({"content-type": "text/plain"}, 415),
        ):
            answer = await client.put(TRAFFIC, json={"weights": {"b": 1}}, headers=headers)
            assert answer.status_code == status
            error_of(answer)
    assert not services.changes


async def test_a_service_that_blocks_does_not_block_others() -> None:
    services = MemoryServices()
    services.hold.clear()
    async with serving(services) as client:
        try:
            waiting = [asyncio.create_task(client.get("/api/v1/status")) for _ in range(3)]
            await wait_for(lambda: services.holding == 3)
            assert (await client.get(TRAFFIC)).status_code == 200
        finally:
            services.hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 3


# The table, the document and the page


def test_every_route_has_a_function_and_a_role() -> None:
    assert {route.handler for route in API_ROUTES} == set(HANDLERS)
    for route in API_ROUTES:
        if route.path.startswith("/api/"):
            assert route.role is not None, route.path
            assert route.method == "GET" or route.role in (Role.OPERATOR, Role.ADMIN), route.path


async def test_the_document_describes_the_table() -> None:
    async with serving(MemoryServices()) as client:
        answer = await client.get("/openapi.json")
        document = answer.json()
    assert document["openapi"].startswith("3.")
    described = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    expected = {
        (r.method, r.path.replace(":path", "")): r for r in API_ROUTES if r.path.startswith("/api/")
    }
    assert described.keys() == expected.keys()
    for place, operation in described.items():
        route = expected[place]
        assert operation["operationId"] == route.handler
        assert operation["summary"] == route.summary
        assert operation["security"] == [{"key": []}]
        assert set(operation["responses"]) == {
            "201" if route.handler == "create_key" else "200",
            "default",
        }
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_the_page_needs_no_network_and_runs_nothing() -> None:
    async with serving(MemoryServices()) as client:
        answer = await client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "script" not in policy
    page = answer.text
    assert not re.search(r"<script|https?://|\bon\w+=|javascript:", page)
    for route in API_ROUTES:
        if route.path.startswith("/api/"):
            path = route.path.replace(":path}", "}")
            assert f"<b>{route.method}</b> {path}" in page
            assert f'id="{route.handler}"' in page
    assert "integer | null" in page
    assert "viewer | user | operator | admin" in page


def test_a_schema_that_holds_itself_is_shown() -> None:
    tree = {"type": "object", "properties": {"below": {"$ref": "#/components/schemas/Tree"}}}
    document = {"components": {"schemas": {"Tree": tree}}}
    assert "..." in str(outline(document, tree))
