"""Pods that may run under the `restricted` Pod Security Standard, and what all objects share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.http.certificates import AUTHORITY, REPLICA
from thrifty.http.certificates import VARIABLE as TLS_VARIABLE

HOME = "/var/lib/thrifty"
CONFIG = "/etc/thrifty"
CERTIFICATES = "/etc/thrifty-tls"
USER_ID = 10001
"""The user in our image (deploy/Containerfile)."""
CHECKSUM = "thrifty/spec-checksum"
PRE_STOP_S = 15
"""Until every node has stopped sending new connections to a pod that is leaving."""
REPLICA_PORT = 8000
SERVICE_ACCOUNT = "thrifty"
GPU_RESOURCE = "nvidia.com/gpu"
"""What NVIDIA's device plugin calls GPUs."""
SHARED_BYTES = 2 << 30
"""Shared memory of a pod with several GPUs, through which the processes of one model pass what they
computed. Containers have 64 MiB by themselves."""
_PROBE_S = 2


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
    image: Any,
    arguments: list[str],
    port: int,
    environment: list[dict[str, Any]],
    resources: dict[str, Any],
    probes: dict[str, Any],
    *,
    pre_stop_s: int = PRE_STOP_S,
) -> dict[str, Any]:
    """The one container of a pod. `image` is a text, or a chart's mark for one."""
    return {
        "name": name,
        "image": image,
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
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(pre_stop_s)]}}},
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
    pull_secret: str | None,
    container: dict[str, Any],
    home: dict[str, Any],
    grace_s: int,
    annotations: dict[str, Any],
) -> dict[str, Any]:
    """A pod template. `home` is the source of the volume with `THRIFTY_HOME`."""
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
    if pull_secret:
        spec["imagePullSecrets"] = [{"name": pull_secret}]
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def add_shared_memory(pod: dict[str, Any], size: int = SHARED_BYTES) -> None:
    """Give a pod's container shared memory of `size` bytes, which counts against its memory limit."""
    spec = pod["spec"]
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": format_quantity(size)}}
    spec["volumes"].append({"name": "shm", **source})
    mount = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108
    spec["containers"][0]["volumeMounts"].append(mount)


def add_certificates(pod: dict[str, Any], part: str, secret: str) -> None:
    """Have the container of a pod know its fleet by the certificates in a Secret, which has the keys of
    the type `kubernetes.io/tls` and `ca.crt`. Changed ones reach it while it runs.
    """
    spec = pod["spec"]
    (container,) = spec["containers"]
    files = {"ca.crt": AUTHORITY, "tls.crt": f"{part}.crt", "tls.key": f"{part}.key"}
    items = [{"key": key, "path": path} for key, path in files.items()]
    source = {"secretName": secret, "items": items, "defaultMode": 0o440}
    spec["volumes"].append({"name": "certificates", "secret": source})
    mount = {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True}
    container["volumeMounts"].append(mount)
    container["env"].append({"name": TLS_VARIABLE, "value": CERTIFICATES})
    if part == REPLICA:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            request = {**container[name]["httpGet"], "scheme": "HTTPS"}
            container[name] = {**container[name], "httpGet": request}


def has_certificates(pod: Mapping[str, Any]) -> bool:
    """Whether a pod's container was given certificates."""
    return any(
        one.get("name") == TLS_VARIABLE
        for container in (pod.get("spec") or {}).get("containers") or ()
        for one in container.get("env") or ()
    )


def make_resources(**bounds: Any) -> dict[str, Any]:
    """Requests and limits that are equal: the engine's threads and caches go by the limits."""
    return {"requests": dict(bounds), "limits": bounds}


def make_probes(path: str, start_timeout_s: float) -> dict[str, Any]:
    """Probes of a server that is ready, or not yet, or not any more, by what `path` answers."""
    request = {"httpGet": {"path": path, "port": "http"}}
    tries = max(1, round(start_timeout_s / _PROBE_S))
    return {
        "startupProbe": {**request, "periodSeconds": _PROBE_S, "failureThreshold": tries},
        "readinessProbe": {**request, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**request, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }  # fmt: skip


def format_quantity(count: int) -> str:
    """Bytes as Kubernetes writes them."""
    for size, unit in ((1 << 30, "Gi"), (1 << 20, "Mi")):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
