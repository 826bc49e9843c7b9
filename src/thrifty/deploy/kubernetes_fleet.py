"""What a controller in the cluster needs that scales Deployments itself: an account with these rights,
in its own namespace, and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrifty.deploy.kubernetes_options import KubernetesOptions
from thrifty.errors import Problem, SpecError
from thrifty.fleet.kubernetes_objects import make_owner_labels
from thrifty.kubernetes.pods import HOME
from thrifty.spec.fleet import FleetSpec

CONTROLLER = "thrifty-controller"


def make_rules(fleet: str) -> list[dict[str, Any]]:
    """What the controller of the fleet called `fleet` may do."""
    return [
        # One Deployment for each set of replicas, written by server-side apply.
        {
            "apiGroups": ["apps"],
            "resources": ["deployments"],
            "verbs": ["list", "watch", "create", "patch", "delete"],
        },
        # Which replicas there are, and which one goes first.
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "patch", "delete"]},
        # Of several controllers one acts.
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [fleet],
            "verbs": ["get", "update"],
        },
    ]


def make_controller_account(
    metadata: Callable[[str, str], dict[str, Any]], namespace: str | None, fleet: str
) -> list[dict[str, Any]]:
    """The controller's ServiceAccount, Role and RoleBinding."""
    subject: dict[str, Any] = {"kind": "ServiceAccount", "name": CONTROLLER}
    if namespace is not None:
        subject["namespace"] = namespace
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(CONTROLLER, "account"),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata(CONTROLLER, "account"),
            "rules": make_rules(fleet),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata(CONTROLLER, "account"),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": CONTROLLER,
            },
            "subjects": [subject],
        },
    ]  # fmt: skip


def refuse_in_cluster(fleet: FleetSpec, options: KubernetesOptions) -> None:
    """Refuse what a controller in the cluster cannot have. Raises `SpecError`."""
    problems = []
    for key in ("kubeconfig", "context"):
        if getattr(fleet, key) is not None:
            message = "names what is on this machine; a controller in the cluster has its account"
            problems.append(Problem(f"fleet.{key}", message))
    if fleet.namespace not in (None, options.namespace):
        message = (
            f"is {fleet.namespace!r}, and everything is put into {options.namespace!r}; leave it out, "
            f"or add --set namespace={fleet.namespace}"
        )
        problems.append(Problem("fleet.namespace", message))
    if options.tls and not fleet.tls:
        message = "replicas are the controller's; write 'fleet.tls: true' into the spec instead"
        problems.append(Problem("tls", message))
    if options.autoscale != "none":
        message = (
            "the controller writes the number of replicas, and two would fight over it; leave "
            "autoscale out, and set replicas.min and replicas.max in the spec"
        )
        problems.append(Problem("autoscale", message))
    if problems:
        raise SpecError(problems)


def let_control(pod: dict[str, Any], fleet: FleetSpec) -> None:
    """Give the gateway's pod what its controller needs: its account, and the models' claim."""
    spec = pod["spec"]
    spec["serviceAccountName"] = CONTROLLER
    spec["automountServiceAccountToken"] = True
    if fleet.models is not None:
        claim = {"claimName": fleet.models}
        spec["volumes"].append({"name": "models", "persistentVolumeClaim": claim})
        mount = {"name": "models", "mountPath": f"{HOME}/models"}
        spec["containers"][0]["volumeMounts"].append(mount)


def make_replica_budget(metadata: dict[str, Any], fleet: str) -> dict[str, Any]:
    """At most one replica of a fleet at a time is evicted, of all versions: drains of nodes wait for
    each other, and never for good.
    """
    labels = {"app.kubernetes.io/name": "thrifty", "app.kubernetes.io/component": "replica"}
    labels |= make_owner_labels(fleet)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }
