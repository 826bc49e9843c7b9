"""`thrifty deploy apply`, `status` and `destroy` on a real API server, and what a half-done one leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.running import running_world
from tests.deploy.specs import FLEET, TWO_VERSIONS, read_objects, render
from thrifty.deploy.cluster import (
    apply_objects,
    destroy_objects,
    look_at_objects,
    read_note,
)
from thrifty.kubernetes.client import ApiRefused

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]


def make_objects(spec: dict[str, Any], namespace: str, **options: str) -> list[dict[str, Any]]:
    """What is rendered, without the budgets, whose version this server has not yet."""
    objects = read_objects(render("kubernetes", spec, namespace=namespace, **options))
    return [one for one in objects if one["kind"] != "PodDisruptionBudget"]


def names(objects: Sequence[Any]) -> set[str]:
    return {f"{one['kind']}/{one['metadata']['name']}" for one in objects}


async def test_apply_look_change_and_destroy(plane: ControlPlane, tmp_path: Path) -> None:
    async with running_world(plane, tmp_path, nodes=0) as world:
        space, client = world.namespace, world.client
        objects = make_objects(TWO_VERSIONS, space)
        assert await apply_objects(client, space, objects, "one") == []
        note = await read_note(client, space)
        assert note is not None
        assert note.whole
        found = await look_at_objects(client, space, note)
        assert {f"{one.place.kind}/{one.place.name}" for one in found} == {
            name for name in names(objects) if not name.startswith("Namespace/")
        }
        assert all(one.there for one in found)
        # Another spec: what it does not have goes, claims excepted.
        fewer = make_objects(FLEET, space, storage="claim")
        gone = await apply_objects(client, space, fewer, "two")
        assert any(place.kind == "Service" and place.name.startswith("chat-") for place in gone)
        assert not [place for place in gone if place.kind == "PersistentVolumeClaim"]
        deployments = {one["metadata"]["name"] for one in await world.deployments()}
        assert deployments == {"thrifty-gateway"}
        note = await read_note(client, space)
        assert note is not None
        stays = await destroy_objects(client, space, note, "thrifty", data=False)
        assert {place.kind for place in stays} == {"PersistentVolumeClaim"}
        assert not await world.deployments()
        note = await read_note(client, space)
        assert note is not None
        assert await destroy_objects(client, space, note, "thrifty", data=True) == []
        assert await read_note(client, space) is None


async def test_an_autoscaler_that_comes_later_finds_the_replicas_that_there_were(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path, nodes=0) as world:
        space, client = world.namespace, world.client
        spec = {**TWO_VERSIONS, "replicas": 8}
        await apply_objects(client, space, make_objects(spec, space), "one")
        scaled = [
            one for one in make_objects(spec, space, autoscale="keda", max="9")
            if one["kind"] != "ScaledObject"
        ]  # fmt: skip
        await apply_objects(client, space, scaled, "two")
        counts = {
            one["metadata"]["name"]: one["spec"]["replicas"] for one in await world.deployments()
        }
        assert sorted(counts.values()) == [1, 8, 8]


async def test_what_broke_off_is_known_and_goes_on_or_away(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with running_world(plane, tmp_path, nodes=0) as world:
        space, client = world.namespace, world.client
        objects = make_objects(TWO_VERSIONS, space)
        spoilt = [dict(one) for one in objects]
        last = max(n for n, one in enumerate(spoilt) if one["kind"] == "Service")
        ports = [{"port": 70_000, "protocol": "TCP"}]
        spoilt[last] = {**spoilt[last], "spec": {**spoilt[last]["spec"], "ports": ports}}
        with pytest.raises(ApiRefused):
            await apply_objects(client, space, spoilt, "one")
        note = await read_note(client, space)
        assert note is not None
        assert not note.whole
        found = await look_at_objects(client, space, note)
        assert {one.there for one in found} == {True, False}
        await apply_objects(client, space, objects, "one")
        note = await read_note(client, space)
        assert note is not None
        assert note.whole
        await destroy_objects(client, space, note, "thrifty", data=True)

        async def going(path: str) -> bool:
            try:
                one = await client.request("GET", path)
            except ApiRefused as error:
                return error.status == 404
            # The cluster keeps a claim until nobody uses it.
            return "deletionTimestamp" in one["metadata"]

        for one in found:
            assert await going(one.place.path(space)), one
