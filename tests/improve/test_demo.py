"""The demo in its short form: it measures what it claims, and shuffled thumbs teach nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thrifty.fleet.process import find_ours

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = ("gain", "gain_interval", "promoted", "refused", "rolled_back", "requests", "lost", "wrong_version", "seconds")  # fmt: skip


def play(folder: Path, *options: str) -> dict[str, Any]:
    """The demo, played without a terminal; it must leave nothing running."""
    out, home = folder / "demo.json", folder / "home"
    command = [sys.executable, "-m", "demo", "--short", "--home", str(home), "--out", str(out)]
    done = subprocess.run(
        [*command, *options], env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert find_ours(home) == []
    found: dict[str, Any] = json.loads(out.read_text())
    assert tuple(found) == KEYS
    return found


@pytest.mark.demo
@pytest.mark.timeout(3600)
def test_one_turn_gains_and_what_is_worse_does_not_stay(tmp_path: Path) -> None:
    found = play(tmp_path)
    low, high = found["gain_interval"]
    assert found["promoted"]
    assert 0 < low < found["gain"] < high
    assert found["refused"]
    assert found["rolled_back"]
    assert (found["lost"], found["wrong_version"]) == (0, 0)
    assert found["requests"] > 100


@pytest.mark.demo
@pytest.mark.timeout(3600)
def test_shuffled_thumbs_gain_nothing(tmp_path: Path) -> None:
    found = play(tmp_path, "--shuffled", "--only-turn")
    low, high = found["gain_interval"]
    assert low <= 0 <= high
    assert (found["lost"], found["wrong_version"]) == (0, 0)
