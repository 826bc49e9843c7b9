"""A turn of the loop on a running service, killed in every step, approved and promoted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.artifacts.models import Llama
from tests.engines.test_prompt import make_special_tokenizer
from tests.parts import RunningService, run_thrifty, running_service, wait_until
from tests.text import templates
from thrifty.artifacts import Lineage, Store
from thrifty.db import open_database
from thrifty.db.improve import DONE, ImproveRun, read_runs
from thrifty.home import HOME_VARIABLE, Home
from thrifty.improve.run import STEPS

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

MODEL = Llama(
    vocab=264, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=512
)
SPEC = """\
name: m
model: base
compress: none
replicas: {count: 1, cpus: 1}
record: {prompts: true}
gateway: {port: 0}
improve:
  rows: 10
  approve: true
  train: {epochs: 2, learning_rate: 0.003, lora_rank: 4, window: 128}
  gate: {data: [TEXT], margin: 0.49, tokens: 512, speed: false}
  release: {steps: [50, 100], step: {conversations: 1, time: 0}, settle: 1s}
"""


def add_model(home: Home) -> None:
    store = Store(home.models)
    with store.stage("base") as stage:
        folder = MODEL.write_safetensors(stage / "model", eos_token_id=257)
        make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        store.add(folder, "base", Lineage())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    home = Home(tmp_path_factory.mktemp("loop") / "home")
    add_model(home)
    text = home.root / "text.jsonl"
    lines = [
        f"The {number}. line of a plain text about {number * 7} boats." for number in range(60)
    ]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    spec = home.root / "spec.yaml"
    spec.write_text(SPEC.replace("TEXT", str(text)))
    with running_service(home.root, str(spec), "--no-measure", timeout_s=300) as running:
        yield running


def give_feedback(service: RunningService, count: int) -> None:
    for number in range(count):
        body: dict[str, Any] = {
            "model": "m", "max_tokens": 8, "temperature": 1.0, "user": f"user-{number % 6}",
            "messages": [{"role": "user", "content": f"What is {number}?"}],
        }  # fmt: skip
        reply = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        said = {
            "response_id": reply.json()["id"], "user": body["user"], "correction": f"Aye {number}.",
        }  # fmt: skip
        requests.post(f"{service.url}/v1/feedback", json=said, timeout=60).raise_for_status()


def read_newest(service: RunningService) -> ImproveRun | None:
    database = open_database(Home(service.home).database_url, migrate=False)
    try:
        return next(iter(read_runs(database, "m", 1)), None)
    finally:
        database.close()


def kill_in(service: RunningService, step: str) -> None:
    """Start `improve run`, and kill it as soon as the step has begun."""
    output = service.home / "improve.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", "improve", "run", "m"],
            env={**os.environ, HOME_VARIABLE: str(service.home)}, start_new_session=True,
            stdout=file, stderr=file,
        )  # fmt: skip

    def has_begun() -> bool:
        assert process.poll() is None, output.read_text()
        run = read_newest(service)
        return run is not None and step in run.steps

    wait_until(has_begun, timeout_s=240, what=f"the step {step}")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def run_json(service: RunningService, *words: str, status: int = 0) -> Any:
    result = run_thrifty(service.home, *words, "--json", timeout_s=400)
    assert result.returncode == status, result.stderr + result.stdout
    return json.loads(result.stdout)


def test_a_turn_is_killed_in_every_step_and_goes_on(service: RunningService) -> None:
    early = run_json(service, "improve", "run", "m", status=1)
    assert early["state"] == "nothing"
    assert "nobody has judged an answer" in early["message"]
    give_feedback(service, 40)

    def joined() -> bool:
        planned = run_json(service, "improve", "run", "m", "--dry-run")
        return planned.get("judged") == 40

    wait_until(joined, what="the log to have all answers")
    planned = run_json(service, "improve", "run", "m", "--dry-run")
    assert (planned["method"], planned["rows"], planned["makes"]) == ("sft", 40, "m@v1")
    assert planned["total_minutes"] > 0

    tries: dict[str, int] = {}
    for step in STEPS:
        kill_in(service, step)
        run = read_newest(service)
        assert run is not None
        done = [name for name, one in run.steps.items() if one.state == DONE]
        for name in done:
            # What is done is not done again.
            assert run.steps[name].tries == tries.setdefault(name, run.steps[name].tries)
    run = run_json(service, "improve", "run", "m")
    assert run["state"] == "waiting", run
    assert [one["step"] for one in run["steps"]] == list(STEPS)
    assert len(run_json(service, "improve", "status", "m")["runs"]) == 2

    run = run_json(service, "improve", "approve", "m", "--no-wait")
    assert run["state"] == "releasing", run
    outputs = {one["step"]: one["outputs"] for one in run["steps"]}
    release = str(outputs["release"]["release"])
    ready = lambda: run_json(service, "releases", release)["stage"] != "start"  # noqa: E731
    wait_until(ready, timeout_s=120, what="the candidate to be ready")
    assert run_thrifty(service.home, "release", "promote", release).returncode == 0
    # The command, or the controller, whoever is first.
    assert run_json(service, "improve", "status", "m")["runs"][0]["state"] == "promoted"
    again = run_json(service, "improve", "run", "m", status=1)
    assert again["state"] == "nothing"
    assert "there is nothing new" in again["message"]

    story = run_json(service, "show", outputs["train"]["model"])
    assert [one["name"] for one in story["data"]] == [outputs["collect"]["data"]]
    assert story["runs"][0]["state"] == "promoted"
    assert story["releases"][0]["state"] == "promoted"
    assert story["gate"]["passed"]
    told = run_thrifty(service.home, "show", outputs["train"]["model"])
    assert "promoted" in told.stdout, told.stdout


def test_two_processes_do_not_work_on_one_deployment(
    service: RunningService, tmp_path: Path
) -> None:
    from thrifty.errors import ControlError
    from thrifty.improve.run import hold_lease

    database = open_database(Home(service.home).database_url, migrate=False)
    try:
        with hold_lease(database, Home(service.home), "m"):
            result = run_thrifty(service.home, "improve", "run", "m")
            assert result.returncode == 1
            assert "another process works on the loop of 'm'" in result.stderr
            with (
                pytest.raises(ControlError, match="another process"),
                hold_lease(database, Home(service.home), "m"),
            ):
                pass
    finally:
        database.close()
