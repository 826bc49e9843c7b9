"""What stands around the pods: autoscalers, network policies, front doors, monitoring."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from thrifty.artifacts.remotes import is_reference, parse_reference
from thrifty.deploy.kubernetes_options import KubernetesOptions, Values
from thrifty.deploy.service import DeployedVersion
from thrifty.kubernetes.pods import REPLICA_PORT, make_labels

_GATEWAY = "thrifty-gateway"
POOLS = "inference.networking.k8s.io"
DEMAND = "thrifty_demand"
"""What autoscalers go by: requests that are there, held ones too, so that they wake what is at zero."""
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_METADATA = {
    "gs": (("169.254.169.252/32", "169.254.169.254/32"), (80, 988)),
    "s3": (("169.254.170.23/32", "fd00:ec2::23/128"), (80,)),
    "az": (("169.254.169.254/32",), (80,)),
}
"""Where pods get the identity that a cloud gives them, by the scheme of its remotes: GKE's Workload
Identity, EKS Pod Identity, and Azure's managed identities."""
_DOWN_AFTER_S = 300
"""A replica takes seconds to minutes to start, so that it is not given up for a short lull."""


def find_hpa_fault(version: DeployedVersion) -> str | None:
    """Why an HPA cannot ask for the metric of a version; None if it can."""
    for what, value in (("deployment", version.deployment), ("label", version.label)):
        if _LABEL_VALUE.fullmatch(value) is None:
            return (
                f"hpa selects its metric by labels of Kubernetes, and the {what} {value!r} cannot be "
                "the value of one (63 letters, digits, '.', '_' and '-'); use autoscale=keda, or "
                "another name"
            )
    return None


def make_autoscaler(
    metadata: dict[str, Any],
    options: KubernetesOptions,
    values: Values,
    version: DeployedVersion,
    kind: str,
) -> dict[str, Any]:
    """What writes `replicas` of a version's Deployment, by the requests that are at the gateway."""
    name = metadata["name"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    least = values.number("autoscale.min", options.min)
    most = values.number("autoscale.max", options.max)
    each = values.text("autoscale.targetInFlight", str(options.target_in_flight))
    behavior = {"scaleDown": {"stabilizationWindowSeconds": _DOWN_AFTER_S}}
    labels = {"deployment": version.deployment, "version": version.label}
    if kind == "hpa":
        metric = {
            "type": "External",
            "external": {
                "metric": {"name": DEMAND, "selector": {"matchLabels": labels}},
                "target": {"type": "AverageValue", "averageValue": each},
            },
        }
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata,
            "spec": {
                "scaleTargetRef": target, "minReplicas": least, "maxReplicas": most,
                "metrics": [metric], "behavior": behavior,
            },
        }  # fmt: skip
    selector = ",".join(f'{key}="{value}"' for key, value in labels.items())
    query = f"sum({DEMAND}{{{selector}}})"
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": values.text("autoscale.prometheus", options.prometheus),
            "query": query,
            "threshold": each,
            # Without data nothing is known: the number of replicas stays.
            "ignoreNullValues": "false",
        },
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": target,
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
            "triggers": [trigger],
        },
    }


def _make_egress(versions: Iterable[DeployedVersion]) -> list[dict[str, Any]]:
    """What replicas reach: name servers, HTTPS, the ports of their registries, and where their remotes'
    cloud gives pods an identity.
    """
    remotes = [
        parse_reference(one.spec.model)
        for one in versions
        if one.engine.traits.loads_model and is_reference(one.spec.model)
    ]
    registries = [urlsplit(f"//{one.host}").port for one in remotes if one.scheme == "oci"]
    rules: list[dict[str, Any]] = [
        {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]},
        {"ports": _make_ports({443, *(port for port in registries if port)})},
    ]
    for scheme in sorted({one.scheme for one in remotes} & _METADATA.keys()):
        addresses, ports = _METADATA[scheme]
        to = [{"ipBlock": {"cidr": address}} for address in addresses]
        rules.append({"to": to, "ports": _make_ports(ports)})
    return rules


def _make_ports(ports: Iterable[int]) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in sorted(ports)]


def make_network_policies(
    metadata: Callable[[str, str], dict[str, Any]], port: int, versions: Iterable[DeployedVersion]
) -> list[dict[str, Any]]:
    """Replicas are reached by the gateway alone, and reach nothing but what they fetch models from:
    `versions` are those that they serve. The gateway is reached on its port.
    """
    pods = {"app.kubernetes.io/name": "thrifty"}
    gateway = make_labels("gateway", _GATEWAY)
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata("thrifty-replicas", "network"),
            "spec": {
                "podSelector": {"matchLabels": {**pods, "app.kubernetes.io/component": "replica"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {
                        "from": [{"podSelector": {"matchLabels": gateway}}],
                        "ports": [{"protocol": "TCP", "port": REPLICA_PORT}],
                    }
                ],
                "egress": _make_egress(versions),
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(_GATEWAY, "network"),
            "spec": {
                "podSelector": {"matchLabels": gateway},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"protocol": "TCP", "port": port}]}],
            },
        },
    ]


def make_front_door(
    kind: str,
    metadata: dict[str, Any],
    options: KubernetesOptions,
    values: Values,
    port: int,
) -> list[dict[str, Any]]:
    """An Ingress, or an HTTPRoute of the Gateway API, and the InferencePool that it leads to. Streams
    may last, and are not buffered.
    """
    host = values.text("front.host", options.host or "")
    if kind == "route":
        space, _, parent = (options.parent_gateway or "").rpartition("/")
        reference: dict[str, Any] = {"name": values.text("front.parentGateway", parent)}
        if space:
            reference["namespace"] = space
        rule = {
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "backendRefs": [{"name": _GATEWAY, "port": port}],
            "timeouts": {"request": "0s"},
        }
        pools = []
        if options.endpoint_picker:
            pools = [_make_pool(metadata, options.endpoint_picker, port)]
            rule["backendRefs"] = [{"group": POOLS, "kind": "InferencePool", "name": _GATEWAY}]
        route = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": metadata,
            "spec": {"parentRefs": [reference], "hostnames": [host], "rules": [rule]},
        }
        return [route, *pools]
    metadata["annotations"] |= {
        # Of ingress-nginx; other controllers pass over them.
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
        "nginx.ingress.kubernetes.io/proxy-body-size": "0",
    }
    backend = {"service": {"name": _GATEWAY, "port": {"name": "http"}}}
    spec: dict[str, Any] = {
        "ingressClassName": values.text("front.ingressClass", options.ingress_class or "")
    }
    if options.ingress_tls:
        secret = values.text("front.ingressTls", options.ingress_tls)
        spec["tls"] = [{"hosts": [host], "secretName": secret}]
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    spec["rules"] = [{"host": host, "http": {"paths": [path]}}]
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": metadata,
            "spec": spec,
        }
    ]


def _make_pool(metadata: dict[str, Any], picker: str, port: int) -> dict[str, Any]:
    """The gateway's pods as a pool of the Gateway API Inference Extension."""
    name, _, number = picker.partition(":")
    return {
        "apiVersion": f"{POOLS}/v1",
        "kind": "InferencePool",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": make_labels("gateway", _GATEWAY)},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {
                "name": name,
                "port": {"number": int(number)},
                # The gateway balances by itself: without a picker any of its pods will do.
                "failureMode": "FailOpen",
            },
        },
    }


def make_alerts(metadata: dict[str, Any], options: KubernetesOptions) -> list[dict[str, Any]]:
    """What Prometheus scrapes, and what it warns of."""
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": make_labels("gateway", _GATEWAY)},
            "endpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    "interval": "15s",
                    "authorization": {
                        "type": "Bearer",
                        "credentials": {"name": options.secret, "key": "viewer-key"},
                    },
                }
            ],
        },
    }
    rules = [
        _make_rule(
            "ThriftyNoReplica",
            "max by (deployment, version) (thrifty_replica_up) == 0",
            "2m",
            "{{ $labels.deployment }}/{{ $labels.version }} has no ready replica",
            "critical",
        ),
        _make_rule(
            "ThriftyQueueGrows",
            "sum by (deployment, version) (thrifty_queue_length) > 10",
            "5m",
            "requests of {{ $labels.deployment }}/{{ $labels.version }} wait for a slot",
            "warning",
        ),
        _make_rule(
            "ThriftyNoMetrics",
            "absent(thrifty_replica_up)",
            "5m",
            "the gateway's metrics are missing, so autoscaling and alerts see nothing",
            "critical",
        ),
        _make_rule(
            "ThriftyDatabaseAway",
            "min(thrifty_database_up) == 0",
            "5m",
            "the gateway cannot reach its database",
            "warning",
        ),
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata,
        "spec": {"groups": [{"name": "thrifty", "rules": rules}]},
    }
    return [monitor, rule]


def _make_rule(name: str, query: str, wait: str, summary: str, severity: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": query,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
