"""CloudFormation stacks by the real AWS program against moto's server, applied, shown and destroyed.

moto makes the resources and checks no limits; cfn-lint does that (`test_schemas.py`, `test_lambda.py`).
`make test-deploy` runs these.
"""

from __future__ import annotations

import json
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

PARAMETERS = {
    "lambda": {
        "ImageUri": "123456789012.dkr.ecr.us-east-1.amazonaws.com/thrifty:1", "KeySha256": "0" * 64,
    },
    "fargate": {
        "Vpc": "vpc-1", "Subnets": "subnet-1,subnet-2", "ClientSecurityGroup": "sg-1",
        "TargetGroupArn": "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/a/1",
        "ThriftyAdminKeyArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:a",
        "ThriftyViewerKeyArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:b",
    },
}  # fmt: skip


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


@pytest.mark.parametrize("target", PARAMETERS)
def test_a_stack_is_made_shown_changed_and_taken_away(
    target: str, cloud: dict[str, str], tmp_path: Path
) -> None:
    home, spec = tmp_path / "home", tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ONE_MODEL))
    given = [target, str(spec), "--name", f"llm-{target}", "--set", f"image={IMAGE}",
             "--set", "memory=2GB"]  # fmt: skip
    parameters = [p for k, v in PARAMETERS[target].items() for p in ("--parameter", f"{k}={v}")]

    def run(verb: str, *more: str) -> Any:
        return run_thrifty(home, "deploy", verb, *given, *more, timeout_s=600, **cloud)

    applied = run("apply", "--yes", "--json", *parameters)
    assert applied.returncode == 0, applied.stderr
    shown = run("status")
    assert shown.returncode == 0, shown.stderr
    (stack,) = json.loads(shown.stdout)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert stack["Outputs"]
    # The same again changes nothing.
    again = run("apply", "--yes", "--json", *parameters)
    assert again.returncode == 0, again.stderr
    destroyed = run("destroy", "--yes", "--json")
    assert destroyed.returncode == 0, destroyed.stderr
    assert json.loads(destroyed.stdout)["gone"] == [f"Gone: the stack llm-{target}"]
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
