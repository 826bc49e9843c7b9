"""Pages and examples are true: made from the code, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from thrifty.compress.pipeline import check_compress
from thrifty.control.checks import check_spec
from thrifty.engines.machine import detect_machine
from thrifty.spec import load_spec

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "examples").rglob("*.yaml"))
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)


def test_generated_pages_are_not_stale() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_example_specs_are_valid(path: Path) -> None:
    for one in check_spec(load_spec(path, environment={}), detect_machine()):
        for version in one.versions():
            compress = version.loaded.spec.compress
            assert not compress.is_pipeline or not check_compress(compress)


def test_there_are_examples() -> None:
    assert len(SPECS) >= 3
    assert len(PROGRAMS) >= 2


@pytest.mark.engine
@pytest.mark.service
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example_programs_run(path: Path, model_home: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(path)], env={**os.environ, "THRIFTY_HOME": str(model_home)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) > 10


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_documented_metrics_exist_and_all_are_documented() -> None:
    from prometheus_client import generate_latest

    from thrifty.observe.metrics import GatewayMetrics

    exposed = set(re.findall(r"# TYPE (\w+)", generate_latest(GatewayMetrics().registry).decode()))
    page = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`(thrifty_\w+)`", page))
    assert documented == exposed
    assert len(exposed) > 15


def test_documented_error_codes_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r'code="(\w+)"', source))
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert used <= documented, used - documented
