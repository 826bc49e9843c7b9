"""Pods that may run under the `restricted` Pod Security Standard, and what all objects share."""

from __future__ import annotations

from typing import Any

from thrifty.deploy.base import CONFIG, HOME, USER_ID
from thrifty.deploy.kubernetes_options import KubernetesOptions, Values
from thrifty.deploy.sizing import Need

CHECKSUM = "thrifty/spec-checksum"
PRE_STOP_S = 15
"""Until every node has stopped sending new connections to a pod that is leaving."""
REPLICA_PORT = 8000
SERVICE_ACCOUNT = "thrifty"


def make_labels(component: str, name: str) -> dict[str, str]:
    """What selects the pods of one object."""
    return {
        "app.kubernetes.io/name": "thrifty",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": name,
    }


def make_metadata(
    name: str, component: str, checksum: str, namespace: str | None, **more: Any
) -> dict[str, Any]:
    """Metadata; without a namespace, where Helm chooses it."""
    metadata: dict[str, Any] = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    metadata["labels"] = {
        **make_labels(component, name), "app.kubernetes.io/managed-by": "thrifty-render",
    }  # fmt: skip
    metadata["annotations"] = {CHECKSUM: checksum, **more}
    return metadata


def secret_variable(
    variable: str, secret: str, key: str, *, optional: bool = False
) -> dict[str, Any]:
    """An environment variable by reference."""
    reference: dict[str, Any] = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def make_container(
    name: str,
    options: KubernetesOptions,
    values: Values,
    arguments: list[str],
    port: int,
    environment: list[dict[str, Any]],
    resources: dict[str, Any],
    probes: dict[str, Any],
) -> dict[str, Any]:
    """The one container of a pod."""
    return {
        "name": name,
        "image": values.text("image", options.image),
        "imagePullPolicy": "IfNotPresent",
        "command": ["thrifty"],
        "args": arguments,
        "env": [
            {"name": "THRIFTY_HOME", "value": HOME},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108
            *environment,
        ],
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        "resources": resources,
        **probes,
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def make_pod(
    component: str,
    name: str,
    options: KubernetesOptions,
    container: dict[str, Any],
    home: dict[str, Any],
    config_checksum: str,
    grace_s: int,
    annotations: dict[str, Any],
) -> dict[str, Any]:
    """A pod template."""
    labels = make_labels(component, name)
    spread = {"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
    spec: dict[str, Any] = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {**spread, "topologyKey": key, "labelSelector": {"matchLabels": labels}}
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [container],
        "volumes": [
            {"name": "home", **home},
            {"name": "config", "configMap": {"name": name}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    if options.pull_secret:
        spec["imagePullSecrets"] = [{"name": options.pull_secret}]
    return {
        "metadata": {
            "labels": labels,
            "annotations": {"thrifty/config-checksum": config_checksum, **annotations},
        },
        "spec": spec,
    }


def make_resources(values: Values, path: str, need: Need) -> dict[str, Any]:
    """Requests and limits that are equal: the engine's threads and caches go by the limits."""
    cpu = values.text(f"{path}.cpu", str(need.cpus))
    memory = values.text(f"{path}.memory", format_quantity(need.memory_bytes))
    bounds = {"cpu": cpu, "memory": memory}
    return {"requests": dict(bounds), "limits": bounds}


def format_quantity(count: int) -> str:
    """Bytes as Kubernetes writes them."""
    for size, unit in ((1 << 30, "Gi"), (1 << 20, "Mi")):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
