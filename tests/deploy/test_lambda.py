"""The Lambda function by others' checkers, and with a real model under Lambda's limits.

`make test-deploy` runs these.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.aws_lambda.emulator import make_event
from tests.aws_lambda.function import KEY, running_function
from tests.aws_lambda.limits import drop_from_page_cache, function_limits
from tests.deploy.checkers import run_cfn_lint, run_sam
from tests.deploy.specs import ONE_MODEL, render
from tests.parts import run_thrifty
from thrifty.aws_lambda.access import HASH_VARIABLE

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

MEMORY_MIB = 3008
ENVIRONMENT = {HASH_VARIABLE: hashlib.sha256(KEY.encode()).hexdigest()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's build makes."""
    folder = tmp_path_factory.mktemp("lambda")
    files = render("lambda", ONE_MODEL)
    (folder / "thrifty.yaml").write_text(files["thrifty.yaml"])
    root = folder / "home"
    command = next(line for line in files["Containerfile"].splitlines() if line.startswith("RUN"))
    assert command == 'RUN ["thrifty", "lambda", "bake", "/opt/thrifty.yaml"]'
    done = run_thrifty(root, "lambda", "bake", str(folder / "thrifty.yaml"), timeout_s=900)
    assert done.returncode == 0, done.stderr
    return root


def ask(text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "messages": [{"role": "user", "content": text}], **fields}
    return make_event("POST", "/v1/chat/completions", body, KEY)


def test_a_real_model_starts_and_answers_within_lambdas_limits(home: Path) -> None:
    """The time is measured by benchmarks/lambda_cold_start.py."""
    drop_from_page_cache(home)
    with function_limits(MEMORY_MIB) as box:
        before = time.monotonic()
        with running_function(home, ENVIRONMENT, preexec_fn=box.enter) as function:
            emulator = function.emulator
            invoked = emulator.invoke(ask("Name a colour.", stream=True, max_tokens=16))
            first_s = invoked.wait_for(b'"content":"', 120) - before
            invoked.wait()
            assert invoked.body.endswith(b"data: [DONE]\n\n")
            assert invoked.trailers == {}
            assert emulator.first_poll_s is not None
            warm = emulator.invoke(ask("Name an animal.", max_tokens=8)).wait()
            assert warm.head["statusCode"] == 200
            assert b'"completion_tokens":8' in warm.body
            assert function.terminate() == 0
        peak = box.peak_bytes()
    print(f"first token after {first_s:.2f} s; {box.how}; peak {peak}")
    assert first_s < 60


def test_it_runs_from_a_read_only_home(home: Path) -> None:
    """As in Lambda, where nothing but /tmp can be written; in a mount namespace of its own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("NOT CHECKED: mount namespaces cannot be made here")
    wrapper = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} {home} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", wrapper, "sh"]
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with running_function(home, ENVIRONMENT, wrapper=command) as function:
        invoked = function.emulator.invoke(ask("Hello", max_tokens=4)).wait(120)
        assert invoked.head["statusCode"] == 200, function.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.mark.parametrize("auth", ["key", "iam"])
def test_cloudformation_and_sam_accept_the_template_and_find_what_is_wrong(
    tmp_path: Path, auth: str
) -> None:
    right, wrong = tmp_path / "template.yaml", tmp_path / "wrong.yaml"
    right.write_text(render("lambda", ONE_MODEL, auth=auth)["template.yaml"])
    assert run_cfn_lint(right) == []
    done = run_sam(right)
    assert done.returncode == 0, done.stdout + done.stderr
    template = yaml.safe_load(right.read_text())
    template["Resources"]["Function"]["Properties"]["Timeout"] = 901
    template["Resources"]["Url"]["Properties"]["InvokeMode"] = "STREAM"
    wrong.write_text(yaml.safe_dump(template))
    assert {"E3717", "E3030"} <= {one["Rule"]["Id"] for one in run_cfn_lint(wrong)}
    assert run_sam(wrong).returncode != 0
