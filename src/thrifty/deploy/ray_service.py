"""What a service on Ray is, whoever runs its nodes: its spec, the size of a node, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.deploy.base import Request
from thrifty.deploy.service import dump_spec
from thrifty.deploy.sizing import find_need
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem

RECONNECT_S = 86_400
"""How long nodes wait for a head that is away; by Ray's default they end after a minute, and their
replicas with them."""
HEAD_PORT = 6379
NODE_PORT = 6380
STORE_BYTES = 100_000_000
"""Ray's object store, which replicas do not use; Ray takes no less than 75 MB."""
RAY_ENVIRONMENT = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S),
    "RAY_USAGE_STATS_ENABLED": "0",
}
HEALTH_ENVIRONMENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""At the head: when a node is given up."""


@dataclass(frozen=True)
class RayNodes:
    """The nodes that replicas run on: each holds one of the largest."""

    cpus: int
    memory_bytes: int
    gpus: int
    fewest: int
    most: int


def find_nodes(request: Request) -> RayNodes:
    """How large nodes are, and how many. Raises `SpecError`."""
    cpus = memory = gpus = fewest = most = 0
    for version in request.service.own_versions:
        need = find_need(version, request.store, request.options.memory, None)
        gpus = max(gpus, version.spec.replicas.gpus or 0)
        cpus, memory = max(cpus, need.cpus), max(memory, need.memory_bytes)
        bounds = version.spec.replicas.bounds
        fewest += version.spec.replicas.fewest
        most += bounds[1] if bounds is not None else version.spec.replicas.count
    return RayNodes(cpus, memory, gpus, fewest, request.options.max or most + 1)


def make_spec_text(request: Request, nodes: RayNodes, address: str) -> str:
    """The spec as the controller on the cluster reads it. Raises `SpecError`."""
    service = request.service
    given = dump_spec(service.loaded.spec)
    fleet: dict[str, Any] = {
        **given.get("fleet", {}),
        "kind": "ray", "address": address, "memory": f"{nodes.memory_bytes}B",
        "max_replicas": nodes.most,
    }  # fmt: skip
    return dump_yaml({**given, "fleet": fleet, "gateway": service.gateway_section()})


def require_models(request: Request) -> None:
    """Refuse a spec whose models would not reach the nodes. Raises `SpecError`."""
    loads = any(one.engine.traits.loads_model for one in request.service.own_versions)
    if loads and request.service.loaded.spec.fleet.models is None:
        message = (
            "is needed: machines of a cloud share no folder. Name a remote that they may read and "
            "the controller may write (fleet: {kind: ray, address: ..., models: s3://bucket/models})"
        )
        request.service.loaded.refuse([Problem("fleet.models", message)])
