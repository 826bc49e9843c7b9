"""What is rendered, by the schemas of those who will read it, with something wrong beside it.

`make test-deploy` runs these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.checkers import (
    check_custom,
    check_kubernetes,
    check_monitoring,
    load_crd,
    run_helm,
)
from tests.deploy.specs import SEVERAL, TWO_VERSIONS, pick, read_objects, render

pytestmark = pytest.mark.deploy

FRONT = {
    "host": "llm.example.com", "ingress_class": "nginx", "ingress_tls": "tls",
    "parent_gateway": "infra/public", "monitoring": "true", "storage": "claim",
    "storage_class": "nfs", "pull_secret": "registry",
}  # fmt: skip
CUSTOM = {
    "ScaledObject": "keda-so.yaml",
    "HTTPRoute": "httproute.yaml",
}
MONITORING = ("ServiceMonitor", "PrometheusRule")


def split(objects: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kubernetes' own objects, and others'."""
    own, others = [], []
    for one in objects:
        (others if one["kind"] in (*CUSTOM, *MONITORING) else own).append(one)
    return own, others


def check_own(objects: list[dict[str, Any]]) -> list[str]:
    own, others = split(objects)
    return check_kubernetes(own) + check_monitoring(
        [one for one in others if one["kind"] in MONITORING]
    )


def check_others(objects: list[dict[str, Any]]) -> list[str]:
    return [
        fault
        for one in objects if one["kind"] in CUSTOM
        for fault in check_custom(one, load_crd(CUSTOM[one["kind"]]))
    ]  # fmt: skip


@pytest.mark.parametrize("autoscale", ["none", "hpa", "keda"])
def test_manifests_follow_the_schemas(autoscale: str) -> None:
    for spec in (TWO_VERSIONS, SEVERAL):
        objects = read_objects(render("kubernetes", spec, autoscale=autoscale, **FRONT))
        assert check_own(objects) == []
        assert check_others(objects) == []


def test_wrong_manifests_are_found() -> None:
    """Each kind once, with one key that is misspelt or one value of the wrong type."""
    objects = read_objects(render("kubernetes", TWO_VERSIONS, autoscale="hpa", **FRONT))
    own, _ = split(objects)
    for kind in sorted({one["kind"] for one in own}):
        right = next(one for one in own if one["kind"] == kind)
        wrong = copy.deepcopy(right)
        (wrong.get("spec") or wrong["metadata"])["misspelt"] = 1
        assert len(check_kubernetes([right])) == 0
        assert len(check_kubernetes([wrong])) == 3, kind
    wrong = copy.deepcopy(pick(objects, "Deployment", "thrifty-gateway"))
    wrong["spec"]["replicas"] = "one"
    assert len(check_kubernetes([wrong])) == 3


def test_wrong_custom_resources_are_found() -> None:
    objects = read_objects(render("kubernetes", TWO_VERSIONS, autoscale="keda", **FRONT))
    scaled = next(one for one in objects if one["kind"] == "ScaledObject")
    crd = load_crd("keda-so.yaml")
    scaled["spec"]["maxReplicas"] = 3
    assert any("maxReplicas" in fault for fault in check_custom(scaled, crd))
    route = pick(objects, "HTTPRoute")
    crd = load_crd("httproute.yaml")
    route["spec"]["rules"][0]["timeouts"]["request"] = "never"
    assert check_custom(route, crd)
    route["spec"]["rules"][0]["timeouts"] = {"request": "1s", "backendRequest": "2s"}
    # A rule of CEL: no schema can say this.
    assert any("backendRequest" in fault for fault in check_custom(route, crd))


def test_wrong_monitoring_is_found() -> None:
    objects = read_objects(render("kubernetes", TWO_VERSIONS, **FRONT))
    monitor = pick(objects, "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    assert any("intervall" in fault for fault in check_monitoring([monitor]))


def test_the_chart_gives_what_the_manifests_are(tmp_path: Path) -> None:
    for autoscale in ("none", "hpa", "keda"):
        chart = write(
            tmp_path / autoscale, render("helm", TWO_VERSIONS, autoscale=autoscale, **FRONT)
        )
        lint = run_helm(tmp_path, "lint", str(chart), "--strict", "--kube-version", "1.37")
        assert lint.returncode == 0, lint.stdout + lint.stderr
        made = run_helm(
            tmp_path, "template", "thrifty", str(chart), "--namespace", "thrifty",
            "--kube-version", "1.37",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        objects = [one for one in yaml.safe_load_all(made.stdout) if one]
        plain = read_objects(render("kubernetes", TWO_VERSIONS, autoscale=autoscale, **FRONT))
        assert simplify(objects) == simplify(plain)
        assert check_own(objects) == []


def test_a_charts_values_change_what_they_say(tmp_path: Path) -> None:
    chart = write(tmp_path / "chart", render("helm", TWO_VERSIONS))

    def template(*settings: str) -> list[dict[str, Any]]:
        sets = [part for one in settings for part in ("--set", one)]
        made = run_helm(tmp_path, "template", "t", str(chart), "--kube-version", "1.37", *sets)
        assert made.returncode == 0, made.stderr
        return [one for one in yaml.safe_load_all(made.stdout) if one]

    plain = template("image=other:2")
    images = {
        one["spec"]["template"]["spec"]["containers"][0]["image"]
        for one in plain if one["kind"] == "Deployment"
    }  # fmt: skip
    assert images == {"other:2"}
    assert not [
        one for one in plain if one["kind"] in ("Ingress", "ServiceMonitor", "ScaledObject")
    ]
    scaled = template("autoscale.kind=keda", "autoscale.max=7", "monitoring=true")
    found = [one for one in scaled if one["kind"] == "ScaledObject"]
    assert [one["spec"]["maxReplicaCount"] for one in found] == [7, 7]
    with_replicas = [
        one["metadata"]["name"] for one in scaled
        if one["kind"] == "Deployment" and "replicas" in one["spec"]
    ]  # fmt: skip
    assert with_replicas == ["thrifty-gateway"]
    refused = run_helm(tmp_path, "template", "t", str(chart), "--set", "autoscale.kind=kedaa")
    assert refused.returncode != 0
    assert "autoscale" in refused.stderr


def write(folder: Path, files: Any) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def simplify(objects: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Objects by kind and name, without what plain manifests and charts differ in by design."""
    made = {}
    for one in copy.deepcopy(objects):
        if one["kind"] == "Namespace":
            continue
        one["metadata"].pop("namespace", None)
        one["metadata"]["annotations"].pop("thrifty/spec-checksum")
        if one["kind"] == "Deployment":
            annotations = one["spec"]["template"]["metadata"]["annotations"]
            annotations.pop("thrifty/config-checksum")
            annotations.pop("thrifty/values-checksum", None)
        made[one["kind"], one["metadata"]["name"]] = one
    return made
