"""What stands around the pods: autoscalers, network policies, front doors, monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrifty.deploy.kubernetes_options import KubernetesOptions, Values
from thrifty.deploy.service import DeployedVersion
from thrifty.kubernetes.pods import REPLICA_PORT, make_labels

_GATEWAY = "thrifty-gateway"
DEMAND = "thrifty_demand"
"""What autoscalers go by: requests that are there, held ones too, so that they wake what is at zero."""
_DOWN_AFTER_S = 300
"""A replica takes seconds to minutes to start, so that it is not given up for a short lull."""


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


def make_network_policies(
    metadata: Callable[[str, str], dict[str, Any]], port: int
) -> list[dict[str, Any]]:
    """Replicas are reached by the gateway alone, and reach nothing but name servers and HTTPS, from
    where models come. The gateway is reached on its port.
    """
    pods = {"app.kubernetes.io/name": "thrifty"}
    gateway = make_labels("gateway", _GATEWAY)
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
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
                "egress": [{"ports": dns}, {"ports": [{"protocol": "TCP", "port": 443}]}],
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
) -> dict[str, Any]:
    """An Ingress, or an HTTPRoute of the Gateway API. Streams may last, and are not buffered."""
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
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": metadata,
            "spec": {"parentRefs": [reference], "hostnames": [host], "rules": [rule]},
        }
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
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata,
        "spec": spec,
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
