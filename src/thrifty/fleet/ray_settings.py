"""What a fleet on Ray is told: where the cluster is, and what each replica asks it for.

Plain data and plain functions; Ray itself is not imported here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from thrifty.fleet.base import ReplicaSet
from thrifty.fleet.memory import ModelSize, estimate_memory

Bundle = Mapping[str, float]
"""What one replica needs, by the name of the resource."""


@dataclass(frozen=True)
class RaySettings:
    """What the spec's section `fleet` says, as plain data."""

    address: str = ""
    """HOST:PORT of the cluster's head."""
    name: str = "thrifty"
    """Tells the fleets of one cluster apart."""
    models: str | None = None
    """The remote through which nodes get their models; None: they share the model store."""
    memory_bytes: int | None = None
    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    max_replicas: int | None = None
    """For how many replicas nodes are asked at most."""
    tls: bool = False
    """Whether replicas and gateways show certificates of the fleet."""

    @classmethod
    def from_builtins(cls, values: Mapping[str, Any]) -> RaySettings:
        """What `DesiredService.fleet` holds, but for the kind."""
        given = {key: value for key, value in values.items() if key != "kind"}
        return msgspec.convert(given, cls)

    @property
    def namespace(self) -> str:
        """The namespace of the fleet's actors."""
        return f"thrifty-{self.name}"


def make_bundle(replica_set: ReplicaSet, settings: RaySettings, size: ModelSize) -> Bundle:
    """What a copy of a set asks Ray for, under Ray's own names of resources.

    Memory is in bytes. An accelerator type is asked for by the resource that Ray makes of it.
    """
    bundle: dict[str, float] = {
        "CPU": float(replica_set.cpus),
        "memory": float(estimate_memory(replica_set, settings.memory_bytes, size)),
        **settings.resources,
    }
    if replica_set.gpus:
        bundle["GPU"] = float(replica_set.gpus)
    if settings.accelerator_type is not None:
        bundle[f"accelerator_type:{settings.accelerator_type}"] = 0.001
    return {name: amount for name, amount in bundle.items() if amount > 0}


def make_options(bundle: Bundle) -> dict[str, Any]:
    """A bundle as the options of a Ray actor."""
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {"num_cpus": 0}
    options |= {named[one]: amount for one, amount in bundle.items() if one in named}
    options["resources"] = {one: amount for one, amount in bundle.items() if one not in named}
    return options


def clamp_bundles(
    bundles: Sequence[Bundle], groups: Iterable[tuple[Bundle, int]] | None
) -> list[Bundle]:
    """As many bundles, in order, as nodes of `groups` can hold together.

    Ray's autoscaler passes over a whole request of which a part can never be had. `groups` are the
    kinds of nodes that it may start: what one has, and how many of them there may be (negative:
    as many as one likes). None: it does not say, and nothing is left out.
    """
    if groups is None:
        return list(bundles)
    left = [[dict(resources), count] for resources, count in groups]
    nodes: list[dict[str, float]] = []
    taken = []
    for bundle in bundles:
        node = next((one for one in nodes if _holds(one, bundle)), None)
        if node is None:
            group = next((one for one in left if one[1] != 0 and _holds(one[0], bundle)), None)
            if group is None:
                continue
            group[1] -= 1  # type: ignore[operator]
            node = dict(group[0])  # type: ignore[call-overload]
            nodes.append(node)
        for name, amount in bundle.items():
            node[name] -= amount
        taken.append(bundle)
    return taken


def _holds(node: Any, bundle: Bundle) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


def explain_waiting(
    bundle: Bundle, totals: Sequence[Bundle], free: Sequence[Bundle] | None = None
) -> str | None:
    """Why a replica has no place yet, in plain words; None where one of the nodes has room.

    `totals` is what each node has, `free` what of it is not in use.
    """
    if not any(_holds(node, bundle) for node in totals):
        have = "; ".join(dict.fromkeys(format_bundle(_only(node, bundle)) for node in totals))
        return (
            f"no node of the Ray cluster has {format_bundle(bundle)} (its nodes have {have or 'nothing'}"
            "). Add such a node, or ask for less: replicas.cpus, fleet.memory, fleet.resources"
        )
    if free is not None and not any(_holds(node, bundle) for node in free):
        return f"waits until a node of the Ray cluster has {format_bundle(bundle)} free"
    return None


def _only(node: Bundle, bundle: Bundle) -> Bundle:
    return {name: node.get(name, 0.0) for name in bundle}


def format_bundle(bundle: Bundle) -> str:
    """A bundle in words: `2 CPU, 1.5 GB memory`."""
    parts = []
    for name, amount in bundle.items():
        if name == "memory":
            parts.append(f"{amount / 1e9:.1f} GB memory")
        elif name.startswith("accelerator_type:"):
            kind = name.partition(":")[2]
            parts.append(f"a {kind}" if amount else f"no {kind}")
        else:
            parts.append(f"{amount:g} {name}")
    return ", ".join(parts)


def make_fingerprint(key: str, name: str) -> str:
    """Tells whether two machines have one key, without saying it; `name` is that of the actor."""
    return hmac.new(key.encode(), name.encode(), hashlib.sha256).hexdigest()
