"""Every measurement can be started: its options parse, and what it imports exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import ROOT, is_there

SCRIPTS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "common")


@pytest.mark.long
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_says_what_it_measures(path: Path) -> None:
    """Its imports at the top are those of a run."""
    result = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


@pytest.mark.parametrize(
    "path", [*SCRIPTS, ROOT / "benchmarks" / "common.py"], ids=lambda p: p.name
)
def test_what_it_imports_on_its_way_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "thrifty":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert is_there(name), f"line {node.lineno}: {name}"


def test_all_of_them_are_run_and_explained() -> None:
    run_all = (ROOT / "benchmarks" / "run_all.py").read_text()
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for path in SCRIPTS:
        if path.stem != "run_all":
            assert f'"{path.stem}"' in run_all, path.stem
            assert f"`{path.name}`" in readme, path.stem
    assert len(SCRIPTS) > 10
