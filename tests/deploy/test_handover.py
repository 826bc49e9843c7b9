"""What `thrifty deploy apply` and `destroy` ask of an API server, which notes here who owns what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tests.deploy.specs import TWO_VERSIONS, read_objects, render
from thrifty.deploy.cluster import Applied, Place, apply_objects, destroy_objects
from thrifty.kubernetes.client import ApiClient, ApiRefused

Object = dict[str, Any]


class Server:
    """Server-side apply, as far as the number of replicas goes: what nobody owns falls back to 1."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.owners: dict[str, set[str]] = {}
        self.selectors: list[str] = []
        self.least: dict[str, int] = {}
        """The fewest replicas that each object ever had."""

    async def apply(self, path: str, body: Mapping[str, Any], manager: str) -> Object:
        one = self.objects.setdefault(path, {"metadata": dict(body["metadata"]), "spec": {}})
        owners = self.owners.setdefault(path, set())
        if "replicas" in body.get("spec", {}):
            one["spec"]["replicas"] = body["spec"]["replicas"]
            owners.add(manager)
        else:
            owners.discard(manager)
        if body["kind"] == "Deployment":
            if not owners:
                one["spec"]["replicas"] = 1
            count = one["spec"]["replicas"]
            self.least[path] = min(count, self.least.get(path, count))
        one["data"] = body.get("data")
        return one

    async def request(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None
    ) -> Object:
        if query:
            self.selectors.append(query["labelSelector"])
            return {"items": []}
        if path not in self.objects:
            raise ApiRefused(404, "NotFound", "not found")
        if method == "DELETE":
            return self.objects.pop(path)
        one = self.objects[path]
        entries = [
            {"manager": owner, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
            for owner in sorted(self.owners.get(path, ()))
        ]
        return {**one, "metadata": {**one["metadata"], "managedFields": entries}}


async def test_an_autoscaler_that_comes_later_finds_the_replicas_that_there_were() -> None:
    server = Server()
    client = cast(ApiClient, server)
    eight = {**TWO_VERSIONS, "replicas": 8}
    await apply_objects(client, "space", read_objects(render("kubernetes", eight)), "one")
    scaled = read_objects(render("kubernetes", eight, autoscale="keda", max="9"))
    await apply_objects(client, "space", scaled, "two")
    replicas = [path for path in server.least if "/deployments/chat-" in path]
    assert [server.least[path] for path in replicas] == [8, 8]
    assert [server.owners[path] for path in replicas] == [{"thrifty-handover"}] * 2
    # The autoscaler has taken them over: another apply leaves them alone.
    for path in replicas:
        server.owners[path] = {"keda"}
        server.objects[path]["spec"]["replicas"] = 5
    await apply_objects(client, "space", scaled, "two")
    assert [server.objects[path]["spec"]["replicas"] for path in replicas] == [5, 5]


async def test_what_is_destroyed_is_of_one_fleet() -> None:
    server = Server()
    applied = Applied("one", True, (Place("Service", "thrifty-gateway"),))
    await destroy_objects(cast(ApiClient, server), "space", applied, "two", data=False)
    (selector,) = server.selectors
    assert selector.split(",") == [
        "app.kubernetes.io/managed-by=thrifty-fleet", "app.kubernetes.io/part-of=two",
    ]  # fmt: skip
