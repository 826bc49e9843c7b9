"""Rendered objects in a cluster: applied, looked at, taken away.

A note in the cluster, a ConfigMap, lists every object before it is applied. So what a half-finished
`apply` left is known: another `apply` goes on with it, and `destroy` takes all of it away. Objects are
written by server-side apply, so that nothing that others set on them is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from thrifty.errors import ThriftyError
from thrifty.fleet.kubernetes_objects import make_selector
from thrifty.kubernetes.client import ApiClient, ApiRefused, Object
from thrifty.kubernetes.pods import CHECKSUM
from thrifty.types import OnProgress, Progress, ignore_progress

MANAGER = "thrifty-render"
HANDOVER = "thrifty-handover"
"""Holds the number of replicas until an autoscaler writes it."""
NOTE = "thrifty-applied"
KINDS: dict[str, tuple[str, str]] = {
    "Namespace": ("/api/v1", "namespaces"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Service": ("/api/v1", "services"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ("/apis/networking.k8s.io/v1", "ingresses"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "InferencePool": ("/apis/inference.networking.k8s.io/v1", "inferencepools"),
    "ScaledObject": ("/apis/keda.sh/v1alpha1", "scaledobjects"),
    "ServiceMonitor": ("/apis/monitoring.coreos.com/v1", "servicemonitors"),
    "PrometheusRule": ("/apis/monitoring.coreos.com/v1", "prometheusrules"),
}
DATA = ("PersistentVolumeClaim",)
"""Kinds that hold what people made; they go only where that is said."""
_GONE = 404


@dataclass(frozen=True, order=True)
class Place:
    """Which object of a namespace."""

    kind: str
    name: str

    def path(self, namespace: str) -> str:
        """Where it is in the API. Raises `ThriftyError` for kinds that are not rendered."""
        if self.kind not in KINDS:
            raise ThriftyError(f"{self.kind} is no kind that `thrifty deploy` renders")
        root, plural = KINDS[self.kind]
        inside = "" if self.kind == "Namespace" else f"/namespaces/{namespace}"
        return f"{root}{inside}/{plural}/{self.name}"


@dataclass(frozen=True)
class Applied:
    """What the note in the cluster says."""

    checksum: str
    """Of the spec and the options that were applied last."""
    whole: bool
    """Whether all of it was."""
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Found:
    """One object, as it is in the cluster."""

    place: Place
    there: bool
    checksum: str
    """Of the spec that it was rendered from."""
    detail: str
    """How it is, in a few words."""


def find_place(one: Object) -> Place:
    """The place of a rendered object."""
    return Place(str(one["kind"]), str(one["metadata"]["name"]))


async def apply_objects(
    client: ApiClient,
    namespace: str,
    objects: Sequence[Object],
    checksum: str,
    on_progress: OnProgress = ignore_progress,
) -> list[Place]:
    """Bring a namespace in line with rendered objects; what an earlier spec had beyond them goes,
    claims excepted. Returns what went. Raises `FleetError` kinds; called again, it goes on.
    """
    space = [one for one in objects if one["kind"] == "Namespace"]
    others = [one for one in objects if one["kind"] != "Namespace"]
    for one in space:
        await client.apply(find_place(one).path(namespace), one, MANAGER)
    before = await read_note(client, namespace)
    known = before.places if before is not None else ()
    wanted = tuple(map(find_place, others))
    both = tuple(dict.fromkeys([*known, *wanted]))
    await _write_note(client, namespace, Applied(checksum, False, both))
    for number, one in enumerate(others):
        on_progress(Progress("apply", number, len(others), "objects"))
        await _hand_over_replicas(client, namespace, one)
        await client.apply(find_place(one).path(namespace), one, MANAGER)
    gone = [place for place in known if place not in wanted and place.kind not in DATA]
    for place in reversed(gone):
        await _delete(client, place.path(namespace))
    on_progress(Progress("apply", len(others), len(others), "objects"))
    kept = tuple(place for place in both if place not in gone)
    await _write_note(client, namespace, Applied(checksum, True, kept))
    return gone


async def _hand_over_replicas(client: ApiClient, namespace: str, one: Object) -> None:
    """Keep the number of replicas that a Deployment has where we do not write it any more: what nobody
    owns falls back to 1. An autoscaler takes it over when it first writes it.
    """
    if one["kind"] != "Deployment" or "replicas" in one["spec"]:
        return
    path = find_place(one).path(namespace)
    try:
        there = await client.request("GET", path)
    except ApiRefused as error:
        if error.status == _GONE:
            return
        raise
    owned = [
        entry for entry in there["metadata"].get("managedFields") or ()
        if entry.get("manager") == MANAGER
        and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]  # fmt: skip
    if owned:
        kept = {key: one[key] for key in ("apiVersion", "kind")}
        kept["metadata"] = {"name": one["metadata"]["name"], "namespace": namespace}
        kept["spec"] = {"replicas": there["spec"]["replicas"]}
        await client.apply(path, kept, HANDOVER)


async def look_at_objects(client: ApiClient, namespace: str, applied: Applied) -> list[Found]:
    """Every object of the note as it is now. Raises `FleetError` kinds."""
    return [await _look(client, namespace, place) for place in applied.places]


async def destroy_objects(
    client: ApiClient,
    namespace: str,
    applied: Applied,
    fleet: str,
    *,
    data: bool,
    on_progress: OnProgress = ignore_progress,
) -> list[Place]:
    """Take everything away that the note lists, and the Deployments of the fleet called `fleet`; claims
    only with `data`.
    Returns what stays. Raises `FleetError` kinds; called again, it goes on.
    """
    # The controller first: it would make anew what goes.
    ordered = sorted(applied.places, key=lambda place: place.kind != "Deployment")
    for number, place in enumerate(ordered):
        on_progress(Progress("destroy", number, len(ordered), "objects"))
        if place.kind not in DATA or data:
            await _delete(client, place.path(namespace))
    root, plural = KINDS["Deployment"]
    found = await client.request(
        "GET", f"{root}/namespaces/{namespace}/{plural}",
        query={"labelSelector": make_selector(fleet)},
    )  # fmt: skip
    for one in found["items"]:
        await _delete(client, Place("Deployment", one["metadata"]["name"]).path(namespace))
    on_progress(Progress("destroy", len(ordered), len(ordered), "objects"))
    stays = [place for place in ordered if place.kind in DATA and not data]
    if stays:
        await _write_note(client, namespace, Applied(applied.checksum, False, tuple(stays)))
    else:
        await _delete(client, _note_path(namespace))
    return stays


async def read_logs(client: ApiClient, namespace: str, lines: int) -> list[tuple[str, str]]:
    """The last lines of each of our pods, by its name. Raises `FleetError` kinds."""
    folder = f"/api/v1/namespaces/{namespace}/pods"
    pods = await client.request(
        "GET", folder, query={"labelSelector": "app.kubernetes.io/name=thrifty"}
    )
    found = []
    for pod in pods["items"]:
        name = pod["metadata"]["name"]
        try:
            text = await client.read_text(f"{folder}/{name}/log", {"tailLines": str(lines)})
        except ApiRefused as error:
            text = f"(no log: {error})\n"
        found.append((name, text))
    return found


async def read_note(client: ApiClient, namespace: str) -> Applied | None:
    """What was applied; None where nothing was. Raises `FleetError` kinds."""
    try:
        one = await client.request("GET", _note_path(namespace))
        return msgspec.json.decode(one["data"]["applied"], type=Applied)
    except ApiRefused as error:
        if error.status == _GONE:
            return None
        raise
    except (KeyError, msgspec.DecodeError):
        raise ThriftyError(
            f"the ConfigMap {NOTE} in {namespace} is not as `thrifty deploy apply` writes it; delete "
            "it to begin anew, and look for objects of an earlier spec yourself"
        ) from None


async def _write_note(client: ApiClient, namespace: str, applied: Applied) -> None:
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NOTE, "namespace": namespace},
        "data": {"applied": msgspec.json.encode(applied).decode()},
    }
    await client.apply(_note_path(namespace), body, MANAGER)


def _note_path(namespace: str) -> str:
    return Place("ConfigMap", NOTE).path(namespace)


async def _delete(client: ApiClient, path: str) -> None:
    try:
        await client.request("DELETE", path, {"propagationPolicy": "Background"})
    except ApiRefused as error:
        if error.status != _GONE:
            raise


async def _look(client: ApiClient, namespace: str, place: Place) -> Found:
    try:
        one = await client.request("GET", place.path(namespace))
    except ApiRefused as error:
        if error.status == _GONE:
            return Found(place, False, "", "is missing")
        raise
    notes = one["metadata"].get("annotations") or {}
    return Found(place, True, str(notes.get(CHECKSUM) or ""), _describe(one))


def _describe(one: Object) -> str:
    status, spec = one.get("status") or {}, one.get("spec") or {}
    if one.get("kind") == "Deployment":
        return f"{status.get('readyReplicas') or 0} of {spec.get('replicas')} ready"
    if one.get("kind") == "PersistentVolumeClaim":
        return str(status.get("phase") or "").lower()
    return "is there"
