"""lm-evaluation-harness, which brings more than a development environment should have to hold: where it
is not installed, the tests with it run in an environment that is made for it.
"""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.environment import KEEP_VARIABLE
from tests.peers.environments import make_environment
from thrifty.errors import EvaluationError
from thrifty.evaluate.harness import Harness

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("lm_eval[api]>=0.4.12,<0.5", "accelerate>=1,<2")
"""The second is what its class for PyTorch needs."""
FILES = {"tests/evaluate/test_harness.py": 11, "tests/evaluate/test_harness_http.py": 3}
"""With the number of tests that they have at least."""

missing = pytest.mark.skipif(find_spec("lm_eval") is not None, reason="it is installed")


@missing
@pytest.mark.peer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_it_agrees_with_us(file: str) -> None:
    if find_spec("torch") is None:
        pytest.skip("needs PyTorch: pip install 'thrifty[compress]'")
    python = make_environment("lm-eval", *REQUIREMENTS)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", KEEP_VARIABLE: "HF_HUB_OFFLINE"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    passed = re.search(r"\b(\d+) passed", ran.stdout)
    assert passed, "none was skipped or left out"
    assert int(passed[1]) >= FILES[file]


@missing
def test_without_it_the_line_that_installs_it_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"pip install 'thrifty\[lm-eval\]'"):
        Harness(["lm_eval:piqa"])
