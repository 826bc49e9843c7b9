"""A RayCluster of KubeRay: a head, nodes for replicas, and a node with the gateway and its controller.

The gateway has a node of its own, because a controller must run on one, and so that a head that is
replaced takes no gateway along. Only Ray's autoscaler writes how many nodes there are.
"""

from __future__ import annotations

from typing import Any

from thrifty.deploy.base import (
    ADMIN_VARIABLE,
    CONFIG,
    VIEWER_VARIABLE,
    Files,
    Request,
    make_credentials,
    make_header,
)
from thrifty.deploy.one_container import START_S
from thrifty.deploy.ray_service import (
    HEAD_PORT,
    HEALTH_ENVIRONMENT,
    NODE_PORT,
    RAY_ENVIRONMENT,
    STORE_BYTES,
    RayNodes,
    find_nodes,
    make_spec_text,
)
from thrifty.deploy.sizing import MIB
from thrifty.deploy.yaml_text import dump_documents
from thrifty.engines.server import KEY_VARIABLE
from thrifty.kubernetes.pods import (
    HOME,
    PRE_STOP_S,
    SERVICE_ACCOUNT,
    SHARED_BYTES,
    add_shared_memory,
    format_quantity,
    make_container,
    make_metadata,
    make_pod,
    make_probes,
    make_resources,
    secret_variable,
)

CLUSTER = "thrifty"
HEAD, GATEWAY, REPLICAS = "headgroup", "gateway", "replicas"
MODELS_CLAIM = "thrifty-models"
_RAY_BYTES = 768 * MIB
"""A node's own processes, and its object store."""
_HEAD_BYTES = 2048 * MIB
_HOME_BYTES = 10 * 1024 * MIB
_SHARED_BYTES = 256 * MIB
_MODELS_BYTES = 50 * 1024 * MIB
_GRACE_S = 60
_GROUP = "ray.io/group"
_LABELS = {"ray.io/cluster": CLUSTER}


def render_kuberay(request: Request) -> Files:
    """Namespace and account, the cluster, and what reaches the gateway."""
    header = make_header(request, "ray")
    nodes = find_nodes(request)
    text = make_spec_text(request, nodes, f"{CLUSTER}-head-svc:{HEAD_PORT}")
    files = {
        "10-account.yaml": _make_base(request, text),
        "20-ray.yaml": [_make_cluster(request, nodes)],
        "30-gateway.yaml": [_make_service(request), *_make_policies(request)],
    }
    return {name: header + dump_documents(objects) for name, objects in files.items()}


def _metadata(request: Request, name: str, component: str) -> dict[str, Any]:
    return make_metadata(name, component, request.checksum, request.options.namespace)


def _make_base(request: Request, text: str) -> list[dict[str, Any]]:
    options = request.options
    namespace = make_metadata(options.namespace, "namespace", request.checksum, None)
    for mode in ("enforce", "audit", "warn"):
        namespace["labels"][f"pod-security.kubernetes.io/{mode}"] = "restricted"
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": namespace},
        {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": _metadata(request, SERVICE_ACCOUNT, "account"),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": _metadata(request, GATEWAY, "gateway"), "data": {"thrifty.yaml": text},
        },
        _make_claim(request, GATEWAY, "ReadWriteOnce", _HOME_BYTES),
    ]  # fmt: skip
    if _shares_models(request):
        made.append(_make_claim(request, MODELS_CLAIM, "ReadWriteMany", _MODELS_BYTES))
    return made


def _shares_models(request: Request) -> bool:
    """Whether nodes find models in a claim, and not in a remote."""
    loads = any(one.engine.traits.loads_model for one in request.service.own_versions)
    return loads and request.service.loaded.spec.fleet.models is None


def _make_claim(request: Request, name: str, mode: str, size: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": [mode], "resources": {"requests": {"storage": format_quantity(size)}},
    }  # fmt: skip
    if request.options.storage_class:
        spec["storageClassName"] = request.options.storage_class
    metadata = _metadata(request, name, "storage")
    return {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec,
    }  # fmt: skip


def _make_cluster(request: Request, nodes: RayNodes) -> dict[str, Any]:
    options = request.options
    spec: dict[str, Any] = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 60,
            "image": options.image,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": make_resources(cpu="500m", memory=format_quantity(512 * MIB)),
        },
        # KubeRay makes the token, and whoever lacks it cannot run programs on the nodes.
        "authOptions": {"mode": "token"},
        "headGroupSpec": _make_head(request),
        "workerGroupSpecs": [_make_gateway(request), _make_replicas(request, nodes)],
    }
    if options.gcs_redis:
        password = secret_variable("", options.secret, "gcs-redis-password")["valueFrom"]
        spec["gcsFaultToleranceOptions"] = {
            "redisAddress": options.gcs_redis, "redisPassword": {"valueFrom": password},
        }  # fmt: skip
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(request, CLUSTER, "ray"),
        "spec": spec,
    }


def _make_head(request: Request) -> dict[str, Any]:
    """The head: it runs no replicas."""
    resources = make_resources(cpu="1", memory=format_quantity(_HEAD_BYTES))
    environment = _list(HEALTH_ENVIRONMENT)
    pod = _make_ray_pod(request, HEAD, "ray-head", HEAD_PORT, environment, resources, {})
    # KubeRay gives the head an account with the rights of Ray's autoscaler.
    del pod["spec"]["serviceAccountName"], pod["spec"]["automountServiceAccountToken"]
    return {
        "rayStartParams": {
            "num-cpus": "0", "dashboard-host": "0.0.0.0",  # noqa: S104
            "object-store-memory": str(STORE_BYTES),
        },
        "template": pod,
    }  # fmt: skip


def _make_gateway(request: Request) -> dict[str, Any]:
    options, service = request.options, request.service
    workers = service.loaded.spec.gateway.workers
    environment = [
        secret_variable(ADMIN_VARIABLE, options.secret, "admin-key"),
        secret_variable(VIEWER_VARIABLE, options.secret, "viewer-key"),
        secret_variable(KEY_VARIABLE, options.secret, "replica-key"),
        *(secret_variable(name, options.secret, name) for name in service.key_variables()),
        *make_credentials(service.credential_variables("HF_TOKEN"), options.secret),
    ]
    memory = request.find_gateway_need(prepares=True).memory_bytes + _RAY_BYTES
    resources = make_resources(cpu=str(max(1, workers)), memory=format_quantity(memory))
    home = {"persistentVolumeClaim": {"claimName": GATEWAY}}
    pod = _make_ray_pod(
        request, GATEWAY, "ray-worker", service.port, environment, resources, home,
        probes=make_probes("/healthz", START_S),
    )  # fmt: skip
    # The node runs beside the controller, which reaches Ray through it.
    pod["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] = "true"
    keys = f"--key admin={ADMIN_VARIABLE} --key viewer={VIEWER_VARIABLE}"
    pod["spec"]["containers"][0] |= {
        "command": ["/bin/sh", "-c"],
        "args": [
            '/bin/sh -c "$KUBERAY_GEN_RAY_START_CMD" & '
            f"exec thrifty up {CONFIG}/thrifty.yaml --no-measure {keys}"
        ],
    }
    return {
        "groupName": GATEWAY,
        "replicas": 1, "minReplicas": 1, "maxReplicas": 1,
        "rayStartParams": _make_parameters(0, MIB),
        "template": pod,
    }  # fmt: skip


def _make_replicas(request: Request, nodes: RayNodes) -> dict[str, Any]:
    options = request.options
    shared = SHARED_BYTES if nodes.gpus > 1 else 0
    memory = nodes.memory_bytes + _RAY_BYTES + shared
    bounds: dict[str, Any] = {"cpu": str(nodes.cpus), "memory": format_quantity(memory)}
    parameters = _make_parameters(nodes.cpus, nodes.memory_bytes)
    if nodes.gpus:
        bounds["nvidia.com/gpu"] = str(nodes.gpus)
        parameters["num-gpus"] = str(nodes.gpus)
    # What remotes and hubs may ask for, where the platform gives pods no identity.
    names = ["HF_TOKEN", *request.service.fetch_variables()]
    environment = [
        secret_variable(KEY_VARIABLE, options.secret, "replica-key"),
        *make_credentials(names, options.secret),
    ]
    probe = {"tcpSocket": {"port": NODE_PORT}}
    probes = {
        "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": 150},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
    }
    pod = _make_ray_pod(
        request, REPLICAS, "ray-worker", NODE_PORT, environment, make_resources(**bounds),
        {"emptyDir": {}}, probes=probes, shared_bytes=_SHARED_BYTES + shared,
    )  # fmt: skip
    return {
        "groupName": REPLICAS,
        "minReplicas": nodes.fewest, "maxReplicas": nodes.most,
        "rayStartParams": parameters,
        "template": pod,
    }  # fmt: skip


def _make_parameters(cpus: int, memory_bytes: int) -> dict[str, str]:
    return {
        "num-cpus": str(cpus), "memory": str(memory_bytes),
        "object-store-memory": str(STORE_BYTES), "node-manager-port": str(NODE_PORT),
    }  # fmt: skip


def _list(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def _make_ray_pod(
    request: Request,
    group: str,
    container_name: str,
    port: int,
    environment: list[dict[str, Any]],
    resources: dict[str, Any],
    home: dict[str, Any],
    *,
    probes: dict[str, Any] | None = None,
    shared_bytes: int = _SHARED_BYTES,
) -> dict[str, Any]:
    """A pod of the cluster. KubeRay writes its command. It has probes of its own, because those of
    KubeRay need Ray's dashboard.
    """
    probe = {"tcpSocket": {"port": port}}
    container = make_container(
        container_name, request.options.image, [], port, [*_list(RAY_ENVIRONMENT), *environment],
        resources,
        probes or {
            "readinessProbe": {**probe, "periodSeconds": 5, "failureThreshold": 3},
            "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        },
        pre_stop_s=PRE_STOP_S,
    )  # fmt: skip
    del container["command"], container["args"]
    if group == HEAD:
        container["ports"][0]["name"] = "gcs-server"  # so that KubeRay's Service has it
    pod = make_pod(
        group, GATEWAY, request.options.pull_secret, container, home or {"emptyDir": {}}, _GRACE_S,
        {},
    )  # fmt: skip
    pod["metadata"]["labels"] = {
        "app.kubernetes.io/name": "thrifty", "app.kubernetes.io/component": group,
    }  # fmt: skip
    spec = pod["spec"]
    for one in spec["topologySpreadConstraints"]:
        one["labelSelector"] = {"matchLabels": {**_LABELS, _GROUP: group}}
    if group != GATEWAY:
        spec["volumes"] = [one for one in spec["volumes"] if one["name"] != "config"]
        container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "config"]
    add_shared_memory(pod, shared_bytes)
    if _shares_models(request) and group != HEAD:
        claim = {"persistentVolumeClaim": {"claimName": MODELS_CLAIM}}
        spec["volumes"].append({"name": "models", **claim})
        container["volumeMounts"].append({"name": "models", "mountPath": f"{HOME}/models"})
    return pod


def _make_service(request: Request) -> dict[str, Any]:
    port = request.service.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(request, "thrifty-gateway", "gateway"),
        "spec": {
            "type": "ClusterIP",
            "selector": {**_LABELS, _GROUP: GATEWAY},
            "ports": [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}],
        },
    }


def _make_policies(request: Request) -> list[dict[str, Any]]:
    """Nodes hear each other and KubeRay's operator; the gateway hears everyone, on its port."""
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    nodes = {
        "podSelector": {"matchLabels": _LABELS},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": _LABELS}}, operator]}],
    }
    gateway = {
        "podSelector": {"matchLabels": {**_LABELS, _GROUP: GATEWAY}},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": request.service.port, "protocol": "TCP"}]}],
    }
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(request, name, "network"),
            "spec": spec,
        }
        for name, spec in (("thrifty-ray", nodes), ("thrifty-gateway", gateway))
    ]
