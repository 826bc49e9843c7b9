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
    check_container_app,
    check_custom,
    check_kubernetes,
    check_monitoring,
    load_crd,
    run_cfn_lint,
    run_compose,
    run_hadolint,
    run_helm,
)
from tests.deploy.specs import (
    AZURE,
    ONE_MODEL,
    RAY,
    SEVERAL,
    TWO_VERSIONS,
    pick,
    read_objects,
    render,
)

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

FRONT = {
    "host": "llm.example.com", "ingress_class": "nginx", "ingress_tls": "tls",
    "parent_gateway": "infra/public", "monitoring": "true", "storage": "claim",
    "storage_class": "nfs", "pull_secret": "registry", "endpoint_picker": "picker:9002",
}  # fmt: skip
CUSTOM = {
    "keda.sh/v1alpha1": "keda-so.yaml",
    "gateway.networking.k8s.io/v1": "httproute.yaml",
    "inference.networking.k8s.io/v1": "gie-pool.yaml",
    "serving.knative.dev/v1": "kn-service.yaml",
    "serving.kserve.io/v1beta1": "kserve-isvc.yaml",
}
"""The file of the CRD, by the version of the API."""
GATED = {**ONE_MODEL, "model": "hf:org/gated"}
MONITORING = ("ServiceMonitor", "PrometheusRule")


def split(objects: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kubernetes' own objects, and others'."""
    own, others = [], []
    for one in objects:
        (others if one["apiVersion"] in CUSTOM or one["kind"] in MONITORING else own).append(one)
    return own, others


def check_own(objects: list[dict[str, Any]]) -> list[str]:
    return check_kubernetes(split(objects)[0])


def check_others(objects: list[dict[str, Any]]) -> list[str]:
    return [
        fault
        for one in objects if one["apiVersion"] in CUSTOM
        for fault in check_custom(one, load_crd(CUSTOM[one["apiVersion"]]))
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
    pool = pick(objects, "InferencePool")
    crd = load_crd("gie-pool.yaml")
    # A rule of CEL: a Service has a port.
    assert check_custom({**pool, "spec": {**pool["spec"], "endpointPickerRef": {"name": "x"}}}, crd)
    pool["spec"]["targetPorts"] = [{"number": 0}]
    assert check_custom(pool, crd)
    route = pick(objects, "HTTPRoute")
    crd = load_crd("httproute.yaml")
    route["spec"]["rules"][0]["timeouts"]["request"] = "never"
    assert check_custom(route, crd)
    route["spec"]["rules"][0]["timeouts"] = {"request": "1s", "backendRequest": "2s"}
    # A rule of CEL: no schema can say this.
    assert any("backendRequest" in fault for fault in check_custom(route, crd))


def test_monitoring_follows_the_models_and_what_is_wrong_is_found() -> None:
    objects = read_objects(render("kubernetes", TWO_VERSIONS, **FRONT))
    right = [one for one in objects if one["kind"] in MONITORING]
    assert len(right) == 2
    monitor = copy.deepcopy(pick(objects, "ServiceMonitor"))
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    (fault,) = check_monitoring([*right, monitor])
    assert "intervall" in fault


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
    for settings, held in (((), 0), (("autoscale.min=0",), 0), (("autoscale.kind=keda",), 0),
                           (("autoscale.kind=keda", "autoscale.min=0"), 2)):  # fmt: skip
        config = pick(template(*settings), "ConfigMap", "thrifty-gateway")["data"]["thrifty.yaml"]
        assert config.count("on_demand: true") == held, settings
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


@pytest.mark.parametrize("target", ["knative", "kserve"])
def test_services_follow_the_schemas_of_their_crds(target: str) -> None:
    objects = read_objects(render(target, TWO_VERSIONS))
    config, service = objects
    assert check_own([config]) == []
    assert check_others([service]) == []
    wrong = copy.deepcopy(service)
    place = wrong["spec"].get("predictor") or wrong["spec"]["template"]["spec"]
    place["containerConcurrencyy"] = 1
    assert any("containerConcurrencyy" in fault for fault in check_others([wrong]))


@pytest.mark.parametrize("spec", [TWO_VERSIONS, RAY], ids=["claim", "remote"])
def test_a_ray_cluster_follows_the_schema_within_that_of_a_ray_service(
    spec: dict[str, Any],
) -> None:
    """KubeRay gives both one schema for the cluster."""
    objects = read_objects(render("ray", spec, gcs_redis="redis://redis:6379"))
    cluster = pick(objects, "RayCluster")
    assert check_own([one for one in objects if one is not cluster]) == []
    service = {**cluster, "kind": "RayService", "spec": {"rayClusterConfig": cluster["spec"]}}
    crd = load_crd("rayservice.yaml")
    assert check_custom(service, crd) == []
    wrong = copy.deepcopy(service)
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 1
    assert any("maxReplica" in fault for fault in check_custom(wrong, crd))
    # Pods there have no schema of their own in the CRD: they are those of Kubernetes.
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": one["template"]["spec"],
        }
        for one in groups
    ]
    assert check_own(pods) == []


def test_cloud_run_speaks_knatives_format() -> None:
    """Google publishes no schema; its API is a part of Knative's."""
    assert check_others(read_objects(render("cloudrun", ONE_MODEL))) == []


def test_container_apps_follow_azures_models_and_what_is_wrong_is_found() -> None:
    (app,) = (yaml.safe_load(one) for one in render("containerapps", ONE_MODEL, **AZURE).values())
    assert check_container_app(app) == []
    properties = app["properties"]
    properties["template"]["scale"]["minReplica"] = 0
    properties["template"]["containers"][0]["resources"]["cpu"] = "two"
    properties["template"]["containers"][0]["probes"][0]["failureThreshold"] = 11
    properties["configuration"]["activeRevisionsMode"] = "One"
    faults = "\n".join(check_container_app(app))
    for words in (
        "minReplica is not known",
        "cpu is no float",
        "11 is not within",
        "'One' is none",
    ):
        assert words in faults


def test_compose_accepts_the_file_and_needs_the_keys(tmp_path: Path) -> None:
    write(tmp_path, render("compose", GATED))
    keys = {"THRIFTY_ADMIN_KEY": "a", "THRIFTY_VIEWER_KEY": "b", "POSTGRES_PASSWORD": "c"}
    assert run_compose(tmp_path, keys).returncode == 0
    missing = run_compose(tmp_path, {**keys, "THRIFTY_ADMIN_KEY": ""})
    assert missing.returncode != 0
    assert "THRIFTY_ADMIN_KEY" in missing.stderr
    path = tmp_path / "compose.yaml"
    path.write_text(path.read_text().replace("mem_limit:", "memlimit:"))
    assert "memlimit" in run_compose(tmp_path, keys).stderr


def test_cloudformation_accepts_the_template_and_finds_what_is_wrong(tmp_path: Path) -> None:
    (text,) = render("fargate", GATED).values()
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(text)
    assert run_cfn_lint(right) == []
    template = yaml.safe_load(text)
    template["Resources"]["Task"]["Properties"]["Memory"] = "512"
    wrong.write_text(yaml.safe_dump(template))
    assert [one["Rule"]["Id"] for one in run_cfn_lint(wrong)] == ["E3047"]


def test_the_containerfile_is_clean_and_what_is_wrong_is_found(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "deploy" / "Containerfile"
    assert run_hadolint(path) == ""
    wrong = tmp_path / "Containerfile"
    wrong.write_text(path.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in run_hadolint(wrong)
