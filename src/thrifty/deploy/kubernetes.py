"""Kubernetes objects: a gateway, and for each version a Deployment of replicas behind a Service.

The gateway runs `thrifty up` with versions of the engine `remote`, whose URL is the version's
Service; each replica runs `thrifty replica`. They share one key, by reference to a Secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from thrifty.deploy.base import (
    ADMIN_VARIABLE,
    CONFIG,
    VIEWER_VARIABLE,
    Files,
    Request,
    Target,
    make_credentials,
    make_header,
)
from thrifty.deploy.kubernetes_fleet import (
    let_control,
    make_controller_account,
    make_replica_budget,
    refuse_in_cluster,
)
from thrifty.deploy.kubernetes_front import (
    find_hpa_fault,
    make_alerts,
    make_autoscaler,
    make_front_door,
    make_network_policies,
)
from thrifty.deploy.kubernetes_options import FixedValues, KubernetesOptions, Values
from thrifty.deploy.one_container import START_S as PREPARING_S
from thrifty.deploy.service import Deployed, DeployedVersion, dump_spec
from thrifty.deploy.sizing import MIB, Need
from thrifty.deploy.yaml_text import dump_documents, dump_yaml
from thrifty.engines.base import Served, parse_options
from thrifty.engines.server import KEY_VARIABLE
from thrifty.engines.server.main import DRAIN_TIMEOUT_S
from thrifty.errors import Problem, SpecError
from thrifty.http.certificates import GATEWAY as GATEWAY_PART
from thrifty.http.certificates import REPLICA as REPLICA_PART
from thrifty.kubernetes.names import make_name
from thrifty.kubernetes.pods import (
    GPU_RESOURCE,
    PRE_STOP_S,
    REPLICA_PORT,
    SERVICE_ACCOUNT,
    SHARED_BYTES,
    add_certificates,
    add_shared_memory,
    format_quantity,
    make_container,
    make_labels,
    make_metadata,
    make_pod,
    make_probes,
    make_resources,
    secret_variable,
)
from thrifty.types import Family

GATEWAY = "thrifty-gateway"
MODELS_CLAIM = "thrifty-models"
_EXTRA_GRACE_S = 15
_START_S = 120
_CONFIG_SUM = "thrifty/config-checksum"
_GATEWAY_HOME_BYTES = 10 * 1024 * MIB


@dataclass(frozen=True)
class Group:
    """Objects that come and go together, in one file."""

    file: str
    objects: list[dict[str, Any]]
    when: str | None = None
    """The condition on a chart's values; None: always."""


@dataclass(frozen=True)
class Context:
    """What every object is made from."""

    request: Request
    values: Values
    namespace: str | None
    needs: dict[tuple[str, str], Need] = field(default_factory=dict)

    @property
    def options(self) -> KubernetesOptions:
        """The target's options."""
        options: KubernetesOptions = self.request.options
        return options

    def metadata(self, name: str, component: str, **more: Any) -> dict[str, Any]:
        """See `make_metadata`."""
        return make_metadata(name, component, self.request.checksum, self.namespace, **more)


def name_version(version: DeployedVersion) -> str:
    """The name of all objects of one version."""
    return make_name(version.deployment, version.label)


def value_path(version: DeployedVersion) -> str:
    """Where a chart's values have what concerns one version."""
    return f"versions.{name_version(version).replace('-', '_')}"


def make_groups(request: Request, values: Values, namespace: str | None) -> Iterator[Group]:
    """All objects, by file."""
    fleet = request.service.loaded.spec.fleet
    # A controller in the cluster gives replicas what they need itself.
    needs = request.find_needs() if fleet.kind == "local" else {}
    context = Context(request, values, namespace, needs)
    options = context.options
    if namespace is not None:
        yield Group("00-namespace.yaml", [_make_namespace(namespace, request.checksum)])
    account = [_make_account(context), *_make_models_claim(context)]
    if fleet.kind == "kubernetes":
        refuse_in_cluster(fleet, options)
        account += make_controller_account(context.metadata, namespace, fleet.name)
    yield Group("10-account.yaml", account)
    yield Group("20-gateway.yaml", _make_gateway(context))
    if fleet.kind == "kubernetes":
        budget = make_replica_budget(context.metadata("thrifty-replicas", "replica"), fleet.name)
        yield Group("30-replicas.yaml", [budget])
    served = request.service.own_versions if fleet.kind == "local" else ()
    for version in served:
        name, fault = name_version(version), find_hpa_fault(version)
        if fault and options.autoscale == "hpa":
            raise SpecError([Problem("autoscale", fault)], "the options")
        yield Group(f"30-{name}.yaml", _make_version(context, version))
        for kind in ("hpa", "keda"):
            if options.autoscale == kind or (values.everything and not (fault and kind == "hpa")):
                made = make_autoscaler(
                    context.metadata(name, "replica"), options, values, version, kind
                )
                yield Group(f"31-{name}-{kind}.yaml", [made], f'eq .Values.autoscale.kind "{kind}"')
    policies = make_network_policies(context.metadata, request.service.port, served)
    yield Group("40-network.yaml", policies)
    for kind, wanted, when in (
        ("ingress", options.ingress_class, ".Values.front.ingressClass"),
        ("route", options.parent_gateway, ".Values.front.parentGateway"),
    ):
        if wanted or values.everything:
            metadata = context.metadata(GATEWAY, "gateway")
            doors = make_front_door(kind, metadata, options, values, request.service.port)
            yield Group(f"50-{kind}.yaml", doors, when)
    if options.monitoring or values.everything:
        alerts = make_alerts(context.metadata(GATEWAY, "gateway"), options)
        yield Group("60-monitoring.yaml", alerts, ".Values.monitoring")


def render_kubernetes(request: Request) -> Files:
    """One file for each group of objects."""
    header = make_header(request, "kubernetes")
    groups = make_groups(request, FixedValues(), request.options.namespace)
    return {group.file: header + dump_documents(group.objects) for group in groups}


def make_gateway_spec(context: Context) -> dict[str, Any]:
    """The spec of the gateway: the same deployments, each version at the URL of its Service; all of
    it, where the controller beside the gateway starts the replicas.
    """
    service = context.request.service
    given = dump_spec(service.loaded.spec)
    shared = {"record", "batches", "observe", "alerts", "price_per_hour", "redis_timeout"}
    gateway = service.gateway_section()
    if context.options.host:
        hosts = [*gateway.get("hosts", ()), context.options.host]
        gateway["hosts"] = list(dict.fromkeys(hosts))
    if service.loaded.spec.fleet.kind == "kubernetes":
        return {**given, "gateway": gateway}
    return {
        **{key: value for key, value in given.items() if key in shared},
        "gateway": gateway,
        "deployments": [_make_gateway_deployment(context, one) for one in service.deployments],
    }


def _make_gateway_deployment(context: Context, deployed: Deployed) -> dict[str, Any]:
    kept = {"aliases", "fallback", "routing", "cache", "limits", "prices"}
    given = dump_spec(deployed.loaded.spec)
    versions = [_make_gateway_version(context, one) for one in deployed.versions]
    return {
        "name": deployed.name,
        **{key: value for key, value in given.items() if key in kept},
        "versions": versions,
    }


def _make_gateway_version(context: Context, version: DeployedVersion) -> dict[str, Any]:
    given = dump_spec(version.spec)
    made: dict[str, Any] = {"label": version.label, "weight": version.weight}
    if version.shadow:
        made["shadow"] = version.shadow
    for key in ("prices", "slo"):
        if key in given:
            made[key] = given[key]
    if version.external:
        names = ["model", "engine", "replicas"]
        return {**made, **{key: given[key] for key in names if key in given}}
    name = name_version(version)
    made["model"] = version.deployment
    made["engine"] = {
        "kind": "remote",
        "urls": [f"{'mtls' if context.options.tls else 'http'}://{name}:{REPLICA_PORT}/v1"],
        "key_env": KEY_VARIABLE,
        "on_demand": context.values.on_demand(context.options.min),
    }
    if version.engine.traits.priority_field:
        made["engine"]["priority_field"] = version.engine.traits.priority_field
    slots = find_slots(version)
    if slots:
        options = context.options
        made["replicas"] = {
            "slots": context.values.total(
                slots, f"{value_path(version)}.replicas", version.spec.replicas.count, options.max,
                options.autoscale != "none",
            )
        }  # fmt: skip
    return made


def find_slots(version: DeployedVersion) -> int | None:
    """How many requests one replica runs at once, where that is known."""
    if version.spec.replicas.slots:
        return version.spec.replicas.slots
    options = parse_options(version.engine, version.spec).model_dump()
    served = Served(
        version.deployment, version.engine.kind, "", "", Family.DECODER, options=options
    )
    return version.engine.find_slots(served)


def _make_namespace(name: str, checksum: str) -> dict[str, Any]:
    metadata = make_metadata(name, "namespace", checksum, None)
    for mode in ("enforce", "audit", "warn"):
        metadata["labels"][f"pod-security.kubernetes.io/{mode}"] = "restricted"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _make_account(context: Context) -> dict[str, Any]:
    """The replicas' account, without any rights: nothing in the pods talks to the API server."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": context.metadata(SERVICE_ACCOUNT, "account"),
        "automountServiceAccountToken": False,
    }


def _make_claim(context: Context, name: str, mode: str, size: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": [mode],
        "resources": {"requests": {"storage": format_quantity(size)}},
    }
    if context.options.storage_class:
        spec["storageClassName"] = context.options.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": context.metadata(name, "storage"),
        "spec": spec,
    }


def _make_models_claim(context: Context) -> list[dict[str, Any]]:
    options = context.options
    if options.storage != "claim":
        return []
    name = context.request.service.loaded.spec.fleet.models or MODELS_CLAIM
    return [_make_claim(context, name, "ReadWriteMany", options.storage_size)]


def _make_config(context: Context, name: str, component: str, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": context.metadata(name, component),
        "data": {"thrifty.yaml": text},
    }


def _make_service(context: Context, name: str, component: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": context.metadata(name, component),
        "spec": {
            "type": "ClusterIP",
            "selector": make_labels(component, name),
            "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _make_budget(context: Context, name: str, component: str) -> dict[str, Any]:
    """At most one pod at a time is evicted. It never holds up the drain of a node for good."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": context.metadata(name, component),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": make_labels(component, name)},
        },
    }


def _make_gateway(context: Context) -> list[dict[str, Any]]:
    options, values, service = context.options, context.values, context.request.service
    config = dump_yaml(make_gateway_spec(context))
    secret = options.secret
    environment = [
        secret_variable(ADMIN_VARIABLE, secret, "admin-key"),
        secret_variable(VIEWER_VARIABLE, secret, "viewer-key"),
    ]
    if service.own_versions:
        environment.append(secret_variable(KEY_VARIABLE, secret, "replica-key"))
    if options.database:
        environment.append(secret_variable("THRIFTY_DATABASE", secret, "database-url"))
    if options.redis:
        environment.append(secret_variable("THRIFTY_REDIS", secret, "redis-url"))
    environment += [secret_variable(name, secret, name) for name in service.key_variables()]
    fleet, start_s = service.loaded.spec.fleet, _START_S
    prepares = fleet.kind == "kubernetes"
    if prepares:
        start_s = PREPARING_S
        environment += make_credentials(service.credential_variables("HF_TOKEN"), secret)
    arguments = [
        "up", f"{CONFIG}/thrifty.yaml", "--no-measure",
        "--key", f"admin={ADMIN_VARIABLE}", "--key", f"viewer={VIEWER_VARIABLE}",
    ]  # fmt: skip
    cpus = (prepares and options.cpus) or 1
    need = context.request.find_gateway_need(prepares=prepares, cpus=cpus)
    resources = _make_bounds(values, "gateway", need)
    container = make_container(
        "gateway", values.text("image", options.image), arguments, service.port, environment,
        resources, make_probes("/healthz", start_s),
    )  # fmt: skip
    drain_s = round(service.loaded.spec.gateway.drain_timeout)
    pod = make_pod(
        "gateway", GATEWAY, options.pull_secret, container,
        {"persistentVolumeClaim": {"claimName": GATEWAY}},
        PRE_STOP_S + drain_s + _EXTRA_GRACE_S, {_CONFIG_SUM: _sum(config), **values.annotations()},
    )  # fmt: skip
    if fleet.kind == "kubernetes":
        let_control(pod, fleet)
    if fleet.tls or options.tls:
        owner = fleet.name if fleet.tls else secret
        add_certificates(pod, GATEWAY_PART, f"{owner}-{GATEWAY_PART}-tls")
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": context.metadata(GATEWAY, "gateway"),
        "spec": {
            # One controller owns a home, so there is one gateway pod, and it is replaced, not doubled.
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": make_labels("gateway", GATEWAY)},
            "template": pod,
        },
    }
    return [
        _make_config(context, GATEWAY, "gateway", config),
        _make_claim(context, GATEWAY, "ReadWriteOnce", _GATEWAY_HOME_BYTES),
        deployment,
        _make_service(context, GATEWAY, "gateway", service.port),
        _make_budget(context, GATEWAY, "gateway"),
    ]


def _make_version(context: Context, version: DeployedVersion) -> list[dict[str, Any]]:
    options, values = context.options, context.values
    name, path = name_version(version), value_path(version)
    need = context.needs[version.deployment, version.label]
    config = dump_yaml(version.replica_spec())
    arguments = [
        "replica", f"{CONFIG}/thrifty.yaml", "--host", "0.0.0.0",  # noqa: S104
        "--port", str(REPLICA_PORT),
    ]  # fmt: skip
    environment = [
        secret_variable(KEY_VARIABLE, options.secret, "replica-key"),
        *make_credentials(["HF_TOKEN", *version.credential_variables()], options.secret),
    ]
    resources = _make_bounds(values, path, need, version.spec.replicas.gpus or 0)
    own = version.spec.engine.image
    image = values.text(f"{path}.image", own) if own else values.text("image", options.image)
    container = make_container(
        "replica", image, arguments, REPLICA_PORT, environment,
        resources, make_probes("/health", version.spec.replicas.start_timeout),
    )  # fmt: skip
    home: dict[str, Any] = {"emptyDir": {}}
    if options.storage == "claim":
        home = {"persistentVolumeClaim": {"claimName": MODELS_CLAIM}}
    elif need.disk_bytes:
        home = {"emptyDir": {"sizeLimit": f"{-(-need.disk_bytes * 3 // MIB)}Mi"}}
    pod = make_pod(
        "replica", name, options.pull_secret, container, home,
        PRE_STOP_S + round(DRAIN_TIMEOUT_S) + _EXTRA_GRACE_S, {_CONFIG_SUM: _sum(config)},
    )  # fmt: skip
    if (version.spec.replicas.gpus or 0) > 1:
        add_shared_memory(pod)
    if options.tls:
        add_certificates(pod, REPLICA_PART, f"{options.secret}-{REPLICA_PART}-tls")
    count, autoscaled = version.spec.replicas.count, options.autoscale != "none"
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": context.metadata(
            name, "replica",
            **{"thrifty/deployment": version.deployment, "thrifty/version": version.label},
        ),
        "spec": {
            **values.replicas(f"{path}.replicas", count, autoscaled),
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": make_labels("replica", name)},
            "template": pod,
        },
    }  # fmt: skip
    return [
        _make_config(context, name, "replica", config),
        deployment,
        _make_service(context, name, "replica", REPLICA_PORT),
        _make_budget(context, name, "replica"),
    ]


def _make_bounds(values: Values, path: str, need: Need, gpus: int = 0) -> dict[str, Any]:
    memory_bytes = need.memory_bytes + (SHARED_BYTES if gpus > 1 else 0)
    bounds = {
        "cpu": values.text(f"{path}.cpu", str(need.cpus)),
        "memory": values.text(f"{path}.memory", format_quantity(memory_bytes)),
    }
    if gpus:
        bounds[GPU_RESOURCE] = str(gpus)
    return make_resources(**bounds)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


CANNOT = (
    "It has one gateway pod, because a controller owns its home: a change of the gateway's own "
    "settings interrupts new requests for seconds. Change traffic with `thrifty traffic`, which does "
    "not.",
    "Without `fleet: {kind: kubernetes}` in the spec, the gateway sees one address for each version, "
    "and Kubernetes spreads connections over its pods: no routing by cached prefixes and the load of "
    "single replicas, and scaling to zero by the cluster's autoscaler alone (min=0).",
    "Models must come from pypi:, hf: or a remote (s3:, gs:, az:, oci:), because other machines "
    "cannot reach this one's store.",
    "Without tls=true (or `fleet.tls` in the spec), gateway and replicas speak plain HTTP with a shared "
    "key inside the cluster, and a NetworkPolicy keeps others away.",
)

TARGET = Target(
    name="kubernetes",
    summary="Kubernetes 1.33 or newer: plain manifests",
    options=KubernetesOptions,
    cannot=CANNOT,
    render=render_kubernetes,
    fleets=frozenset({"kubernetes"}),
    images=True,
    next_steps=(
        "kubectl apply --server-side --field-manager thrifty-render -f DIR   "
        "(create the Secret first: docs/deploy/kubernetes.md)"
    ),
)
