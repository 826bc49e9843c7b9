"""The Deployment of a set of replicas: one for each revision of a version, so that the control plane,
not a rolling update, decides when one takes the other's place.

Its pods carry in an environment variable what they serve, whole, so that a change comes with the
object that it belongs to. Names, labels and pods are made as `thrifty deploy render` makes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from thrifty.engines.base import Served
from thrifty.engines.server import KEY_VARIABLE, SERVED_VARIABLE
from thrifty.fleet.base import ReplicaSet, SetKey
from thrifty.http.certificates import REPLICA
from thrifty.kubernetes.names import make_name
from thrifty.kubernetes.pods import (
    GPU_RESOURCE,
    HOME,
    REPLICA_PORT,
    SHARED_BYTES,
    add_certificates,
    add_shared_memory,
    format_quantity,
    make_container,
    make_labels,
    make_pod,
    make_probes,
    make_resources,
    secret_variable,
)

MANAGER = "thrifty-fleet"
"""Under this name the fleet writes objects, the number of replicas included."""
DEFAULT_FLEET = "thrifty"
CHECKSUM = "thrifty/template-checksum"
PRE_STOP_S = 5
"""Until every gateway has read that a pod is going, where it was not the fleet that chose it."""
DRAIN_S = 30
GRACE_S = PRE_STOP_S + DRAIN_S + 10
TOLERATION_S = 5
"""How long pods stay on a node that does not answer the cluster any more."""
_UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_KEY = ("deployment", "version", "revision", "cpus")


@dataclass(frozen=True)
class KubernetesSettings:
    """What the spec's section `fleet` says, as plain data."""

    namespace: str | None = None
    """None: that of the account or context."""
    name: str = DEFAULT_FLEET
    """Tells the fleets of one namespace apart."""
    image: str = ""
    secret: str = "thrifty"  # noqa: S105
    account: str = "thrifty"
    pull_secret: str | None = None
    models: str | None = None
    """The claim with the model store."""
    memory_bytes: int | None = None
    kubeconfig: str | None = None
    context: str | None = None
    tls: bool = False
    """Whether replicas and gateways show certificates of the fleet."""

    @classmethod
    def from_builtins(cls, values: Mapping[str, Any]) -> KubernetesSettings:
        """What `DesiredService.fleet` holds, but for the kind."""
        given = {key: value for key, value in values.items() if key != "kind"}
        return msgspec.convert(given, cls)


def make_owner_labels(fleet: str) -> dict[str, str]:
    """What marks the objects of the fleet of this name."""
    return {"app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/part-of": fleet}


def make_selector(fleet: str) -> str:
    """The owner's labels as a selector."""
    return ",".join(f"{key}={value}" for key, value in make_owner_labels(fleet).items())


def name_set(key: SetKey, fleet: str = DEFAULT_FLEET) -> str:
    """The name of a set's Deployment; `fleet` is the name of its fleet."""
    others = () if fleet == DEFAULT_FLEET else (fleet,)
    return make_name(key.deployment, key.version, key.revision, str(key.cpus), *others)


def read_key(owned: Mapping[str, Any]) -> SetKey | None:
    """The set that a Deployment or pod of ours belongs to; None where it does not say."""
    notes = (owned.get("metadata") or {}).get("annotations") or {}
    found = [notes.get(f"thrifty/{name}") for name in _KEY]
    if any(value is None for value in found) or not str(found[3]).isdigit():
        return None
    return SetKey(str(found[0]), str(found[1]), str(found[2]), int(str(found[3])))


def read_served(pod: Mapping[str, Any]) -> Served | None:
    """What a pod serves, as its environment says."""
    for container in (pod.get("spec") or {}).get("containers") or ():
        for one in container.get("env") or ():
            if one.get("name") == SERVED_VARIABLE:
                try:
                    return Served.from_json(one.get("value") or "")
                except msgspec.DecodeError:
                    return None
    return None


def make_deployment(
    replica_set: ReplicaSet,
    settings: KubernetesSettings,
    namespace: str,
    memory_bytes: int,
    name: str | None = None,
) -> dict[str, Any]:
    """The Deployment of a set, without the number of its replicas. `name` is that of the one that is
    there already.
    """
    key = replica_set.key
    name = name or name_set(key, settings.name)
    labels = make_labels("replica", name)
    notes = {f"thrifty/{one}": str(getattr(key, one)) for one in _KEY}
    container = _make_container(replica_set, settings, memory_bytes)
    pod = make_pod(
        "replica", name, settings.pull_secret, container, {"emptyDir": {}}, GRACE_S, notes
    )
    pod["metadata"]["labels"] = {**labels, **make_owner_labels(settings.name)}
    spec = pod["spec"]
    spec["serviceAccountName"] = settings.account
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] != "config"]
    if settings.models:
        claim = {"claimName": settings.models}
        spec["volumes"].append({"name": "models", "persistentVolumeClaim": claim})
    spec["tolerations"] = [
        {"key": one, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_S}
        for one in _UNREACHABLE
    ]
    if replica_set.gpus > 1:
        add_shared_memory(pod)
    if settings.tls:
        add_certificates(pod, REPLICA, f"{settings.name}-{REPLICA}-tls")
    template = json.dumps(pod, sort_keys=True)
    checksum = hashlib.sha256(template.encode()).hexdigest()[:16]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**labels, **make_owner_labels(settings.name)},
            "annotations": {**notes, CHECKSUM: checksum},
        },
        "spec": {
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "progressDeadlineSeconds": round(replica_set.start_timeout_s) + 60,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": labels},
            "template": pod,
        },
    }


def _make_container(
    replica_set: ReplicaSet, settings: KubernetesSettings, memory_bytes: int
) -> dict[str, Any]:
    memory_bytes += SHARED_BYTES if replica_set.gpus > 1 else 0
    bounds: dict[str, Any] = {
        "cpu": str(replica_set.cpus), "memory": format_quantity(memory_bytes),
    }  # fmt: skip
    if replica_set.gpus:
        bounds[GPU_RESOURCE] = str(replica_set.gpus)
    arguments = ["replica", "--served", "--host", "0.0.0.0", "--port", str(REPLICA_PORT)]  # noqa: S104
    environment = [
        secret_variable(KEY_VARIABLE, settings.secret, "replica-key"),
        {"name": SERVED_VARIABLE, "value": replica_set.served.to_json().decode()},
    ]
    container = make_container(
        "replica", replica_set.image or settings.image, arguments, REPLICA_PORT, environment, make_resources(**bounds),
        make_probes("/health", replica_set.start_timeout_s), pre_stop_s=PRE_STOP_S,
    )  # fmt: skip
    # The last lines of its log say why it ended, and nobody needs the right to read logs.
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    container["volumeMounts"] = [
        one for one in container["volumeMounts"] if one["name"] != "config"
    ]
    if settings.models:
        mount = {"name": "models", "mountPath": f"{HOME}/models"}
        container["volumeMounts"].append(mount)
    return container
