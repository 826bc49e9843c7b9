"""CloudFormation stacks by the real AWS program against moto's server, applied, shown and destroyed.

moto makes the resources and checks no limits; cfn-lint does that (`test_schemas.py`, `test_lambda.py`).
`make test-deploy` runs these.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.artifacts.remotes.servers import MOTO, run_server
from tests.deploy.specs import IMAGE, ONE_MODEL
from tests.parts import run_thrifty
from tests.peers.environments import make_environment
from thrifty.fleet.ports import find_free_port

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cloud() -> dict[str, str]:
    """The environment in which `aws` reaches moto."""
    python = make_environment("moto", MOTO)
    aws = make_environment("awscli", "awscli==1.45.11", alone=True)
    port = find_free_port()
    run_server([str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, "/")
    return {
        "PATH": f"{aws.parent}:/usr/bin:/bin", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_PAGER": "",
    }  # fmt: skip


def make_parameters(target: str, cloud: dict[str, str]) -> dict[str, str]:
    """The template's parameters; a network is made for them where they name one."""
    if target == "lambda":
        uri = "123456789012.dkr.ecr.us-east-1.amazonaws.com/thrifty:1"
        return {"ImageUri": uri, "KeySha256": "0" * 64}

    def make(service: str, verb: str, *given: str, show: str) -> str:
        command = ["aws", service, verb, *given, "--query", show, "--output", "text"]
        done = subprocess.run(command, env=cloud, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    vpc = make("ec2", "create-vpc", "--cidr-block", "10.0.0.0/16", show="Vpc.VpcId")
    of_vpc = ("--vpc-id", vpc)
    subnets = [
        make(
            "ec2",
            "create-subnet",
            *of_vpc,
            "--cidr-block",
            f"10.0.{n}.0/24",
            show="Subnet.SubnetId",
        )
        for n in (1, 2)
    ]
    group = make("ec2", "create-security-group", *of_vpc, "--group-name", "clients",
                 "--description", "clients", show="GroupId")  # fmt: skip
    targets = make("elbv2", "create-target-group", *of_vpc, "--name", "thrifty", "--protocol", "HTTP",
                   "--port", "8080", "--target-type", "ip",
                   show="TargetGroups[0].TargetGroupArn")  # fmt: skip
    secrets = {
        name: make("secretsmanager", "create-secret", "--name", name, "--secret-string", "0" * 64,
                   show="ARN")
        for name in ("ThriftyAdminKeyArn", "ThriftyViewerKeyArn")
    }  # fmt: skip
    return {
        "Vpc": vpc, "Subnets": ",".join(subnets), "ClientSecurityGroup": group,
        "TargetGroupArn": targets, **secrets,
    }  # fmt: skip


def count_roles(cloud: dict[str, str]) -> int:
    """Every template makes one."""
    command = ["aws", "iam", "list-roles", "--query", "length(Roles)"]
    return int(
        subprocess.run(command, env=cloud, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize("target", ["lambda", "fargate"])
def test_a_stack_is_made_shown_changed_and_taken_away(
    target: str, cloud: dict[str, str], tmp_path: Path
) -> None:
    home, spec = tmp_path / "home", tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ONE_MODEL))
    given = [target, str(spec), "--name", f"llm-{target}", "--set", f"image={IMAGE}",
             "--set", "memory=2GB"]  # fmt: skip
    parameters = [
        p for k, v in make_parameters(target, cloud).items() for p in ("--parameter", f"{k}={v}")
    ]

    def run(verb: str, *more: str) -> Any:
        return run_thrifty(home, "deploy", verb, *given, *more, timeout_s=600, **cloud)

    applied = run("apply", "--yes", "--json", *parameters)
    assert applied.returncode == 0, applied.stderr
    shown = run("status")
    assert shown.returncode == 0, shown.stderr
    (stack,) = json.loads(shown.stdout)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert count_roles(cloud) == 1
    changed = run("apply", "--yes", "--json", *parameters, "--set", "memory=4GB")
    assert changed.returncode == 0, changed.stderr
    (stack,) = json.loads(run("status", "--set", "memory=4GB").stdout)["Stacks"]
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    destroyed = run("destroy", "--yes", "--json")
    assert destroyed.returncode == 0, destroyed.stderr
    assert json.loads(destroyed.stdout)["gone"] == [f"Gone: the stack llm-{target}"]
    assert count_roles(cloud) == 0
    assert "nothing was applied as" in run("status").stderr


def test_a_stack_that_cannot_be_made_is_told_and_taken_back(
    cloud: dict[str, str], tmp_path: Path
) -> None:
    home, spec = tmp_path / "home", tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ONE_MODEL))
    given = [
        "lambda",
        str(spec),
        "--name",
        "broken",
        "--set",
        f"image={IMAGE}",
        "--set",
        "memory=2GB",
    ]
    failed = run_thrifty(home, "deploy", "apply", *given, "--yes", **cloud)
    assert failed.returncode == 1
    assert "ImageUri" in failed.stderr
    assert "thrifty deploy destroy lambda" in failed.stderr
    destroyed = run_thrifty(home, "deploy", "destroy", *given, "--yes", **cloud)
    assert destroyed.returncode == 0, destroyed.stderr
