"""Where the tests find vLLM: `make test-vllm` installs it and says where it is.

python -m tests.engines.vllm.installed    prints the interpreter that has vLLM in THRIFTY_HOME
"""

from __future__ import annotations

import os

import pytest

from thrifty.engines.vllm.packages import find_environment
from thrifty.home import find_home

VARIABLE = "THRIFTY_TEST_VLLM"


def needs_vllm() -> str:
    """The interpreter of vLLM's environment; skips the test where none is named."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip("vLLM is not installed for tests: make test-vllm")
    return python


if __name__ == "__main__":
    print(find_environment(find_home()).python)
