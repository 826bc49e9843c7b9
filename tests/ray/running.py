"""A service whose replicas are actors: the real controller and gateway, on a real Ray cluster."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tests.cluster.running import Service as ClusterService
from tests.cluster.running import version
from tests.ray.cluster import Cluster
from thrifty.db import open_database
from thrifty.fleet.ray import RayFleet
from thrifty.fleet.ray_replica import RayReplica
from thrifty.home import Home, make_private_folder


class Service(ClusterService):
    """A controller with its gateway. Its replicas are the Ray cluster's."""

    def __init__(self, home: Home) -> None:
        self.home = home

    @property
    def ray(self) -> RayFleet:
        """Its fleet."""
        fleet = self.controller._fleets[False]
        assert isinstance(fleet, RayFleet)
        return fleet

    def members(self) -> list[RayReplica]:
        """Its replicas."""
        return list(self.ray._members)


def make_spec(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """A spec on this cluster, as a fleet of its own, with `more` keys."""
    fleet = {"kind": "ray", "address": cluster.address, "name": f"s-{uuid.uuid4().hex[:8]}"}
    return {
        "name": "m",
        "fleet": {**fleet, **more.pop("fleet", {})},
        "versions": [version("a", "a1")],
        "gateway": {"port": 0},
        "cache": False,
        "limits": {"wait_timeout": "120s"},
        "replicas": {"count": 1, "cpus": 1},
        **more,
    }


@contextlib.asynccontextmanager
async def running_service(
    home: Home, spec: Mapping[str, Any], *, ready: bool = True, ending: bool = True
) -> AsyncIterator[Service]:
    """A service, ready. Its replicas end with it if `ending`."""
    make_private_folder(home.root)
    open_database(home.database_url, migrate=True).close()
    service = Service(home)
    try:
        await service.start(spec, ready=ready)
        yield service
    finally:
        if ending:
            await service.ray.stop(5.0)
        await service.stop()


__all__ = ["Service", "make_spec", "running_service", "version"]
