"""The Deployment of a set of replicas."""

from __future__ import annotations

import json
from typing import Any

from thrifty.engines.base import Served
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.fleet.base import ReplicaSet
from thrifty.fleet.kubernetes_objects import (
    CHECKSUM,
    KubernetesSettings,
    make_deployment,
    make_selector,
    name_set,
    read_key,
    read_served,
)
from thrifty.fleet.kubernetes_pod import read_pod
from thrifty.fleet.memory import ModelSize, estimate_memory
from thrifty.spec.load import parse_spec

SETTINGS = KubernetesSettings(image="r/thrifty:1", models="models")


def make_set(count: int = 2, revision: str = "r1", label: str = "v1@x", **more: Any) -> ReplicaSet:
    served = Served("org/Model", "echo", label, revision, "decoder", options={"reply": "x"})
    return ReplicaSet(served, EchoEngine(), count, cpus=3, **more)


def test_a_pod_says_which_set_it_belongs_to_and_what_it_serves() -> None:
    replica_set = make_set()
    made = make_deployment(replica_set, SETTINGS, "space", 1 << 30)
    pod = made["spec"]["template"]
    assert read_key(made) == read_key(pod) == replica_set.key
    assert read_served(pod) == replica_set.served
    assert "replicas" not in made["spec"], "the number is written by the one who knows it"


def test_labels_fit_and_select_what_is_ours() -> None:
    made = make_deployment(make_set(), SETTINGS, "space", 1 << 30)
    labels = made["spec"]["template"]["metadata"]["labels"]
    for part in make_selector(SETTINGS.name).split(","):
        key, _, value = part.partition("=")
        assert labels[key] == made["metadata"]["labels"][key] == value
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert all(len(value) <= 63 for value in labels.values())


def test_names_differ_where_sets_do() -> None:
    sets = [make_set(), make_set(revision="r2"), make_set(label="v1-x"), make_set(label="V1@x")]
    names = {name_set(one.key) for one in sets}
    assert len(names) == 4
    assert all(len(name) <= 40 for name in names)


def test_a_checksum_changes_with_the_pod_and_not_with_the_number() -> None:
    def checksum(count: int, memory: int) -> str:
        made = make_deployment(make_set(count), SETTINGS, "space", memory)
        return str(made["metadata"]["annotations"][CHECKSUM])

    assert checksum(1, 1 << 30) == checksum(5, 1 << 30)
    assert checksum(1, 1 << 30) != checksum(1, 1 << 31)


def test_pods_run_restricted_leave_lost_nodes_and_hold_no_secret() -> None:
    made = make_deployment(make_set(), SETTINGS, "space", 1 << 30)
    spec = made["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"cpu": "3", "memory": "1Gi"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert spec["automountServiceAccountToken"] is False
    assert {one["tolerationSeconds"] for one in spec["tolerations"]} == {5}
    names = [one["name"] for one in container["env"] if "value" in one]
    assert "THRIFTY_REPLICA_KEY" not in names
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in spec["volumes"]} == {"home", "tmp", "models"}
    grace = spec["terminationGracePeriodSeconds"]
    assert grace >= 5 + 30, "what runs has time to end"


def test_memory_is_what_was_asked_for_or_enough_for_the_model() -> None:
    settings = KubernetesSettings(image="i", memory_bytes=3 << 30)
    assert (
        estimate_memory(make_set(memory_limit_bytes=1 << 30), settings.memory_bytes, ModelSize())
        == 1 << 30
    )
    assert estimate_memory(make_set(), settings.memory_bytes, ModelSize()) == 3 << 30
    assert estimate_memory(make_set(), None, ModelSize()) == 512 << 20
    large = estimate_memory(make_set(), None, ModelSize(8 << 30))
    assert large >= 10 << 30
    slots = estimate_memory(make_set(), None, ModelSize(8 << 30, kv_bytes=8 << 30))
    assert slots >= large + (7 << 30), "what slots reserve counts too"
    assert large % (128 << 20) == 0


def test_settings_come_from_the_spec_as_plain_data() -> None:
    spec = parse_spec(
        {"fleet": {"kind": "kubernetes", "image": "r/t:1", "name": "two", "memory": "2GB"}}
    ).spec
    kept = json.loads(json.dumps(spec.fleet.describe()))
    settings = KubernetesSettings.from_builtins(kept)
    assert (settings.image, settings.name, settings.memory_bytes) == ("r/t:1", "two", 2_000_000_000)
    assert parse_spec({"fleet": "local"}).spec.fleet.describe() == {}


def test_a_version_has_its_own_image_and_gpus() -> None:
    made = make_deployment(make_set(image="r/vllm:1", gpus=2), SETTINGS, "space", 1 << 30)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r/vllm:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    plain = make_deployment(make_set(), SETTINGS, "space", 1 << 30)
    (container,) = plain["spec"]["template"]["spec"]["containers"]
    assert container["image"] == SETTINGS.image
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert name_set(make_set(image="r/vllm:1").key) == name_set(make_set().key)


def test_with_certificates_pods_show_them_and_are_probed_over_tls() -> None:
    settings = KubernetesSettings(image="r/thrifty:1", models="models", name="chat", tls=True)
    made = make_deployment(make_set(), settings, "space", 1 << 30)
    pod = made["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "certificates"]
    assert volume["secret"]["secretName"] == "chat-replica-tls"
    paths = {one["path"] for one in volume["secret"]["items"]}
    assert paths == {"ca.crt", "replica.crt", "replica.key"}
    (variable,) = [one for one in container["env"] if one["name"] == "THRIFTY_FLEET_TLS"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "certificates"]
    assert mount["mountPath"] == variable["value"]
    assert mount["readOnly"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    status = {"podIP": "10.0.0.5", "phase": "Running"}
    for one, scheme in ((made, "mtls"), (make_deployment(make_set(), SETTINGS, "s", 1), "http")):
        view = read_pod({**one["spec"]["template"], "status": status}, served_before=False)
        assert view.url == f"{scheme}://10.0.0.5:8000"


def test_fleets_of_one_namespace_do_not_write_one_deployment() -> None:
    names = {name_set(make_set().key, fleet) for fleet in ("thrifty", "one", "two")}
    assert len(names) == 3
    assert name_set(make_set().key, "thrifty") == name_set(make_set().key), "as it always was"
    settings = KubernetesSettings(image="i", name="two")
    made = make_deployment(make_set(), settings, "space", 1)
    assert made["metadata"]["name"] == name_set(make_set().key, "two")
    pods = made["spec"]["template"]["metadata"]["labels"]
    others = make_deployment(make_set(), SETTINGS, "space", 1)["spec"]["selector"]["matchLabels"]
    assert not others.items() <= pods.items()
    known = make_deployment(make_set(), settings, "space", 1, "an-older-name")
    assert known["metadata"]["name"] == "an-older-name"


def test_copies_over_several_gpus_share_memory() -> None:
    made = make_deployment(make_set(gpus=2), SETTINGS, "space", 1 << 30)
    spec = made["spec"]["template"]["spec"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    (container,) = spec["containers"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert container["resources"]["limits"]["memory"] == "3Gi"
