"""Where the tests find vLLM: `make test-vllm` installs it and says where it is."""

from __future__ import annotations

import os

import pytest

VARIABLE = "THRIFTY_TEST_VLLM"


def needs_vllm() -> str:
    """The interpreter of vLLM's environment; skips the test where none is named."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip("vLLM is not installed for tests: make test-vllm")
    return python
