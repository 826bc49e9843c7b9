"""One control plane for all tests of a run, and a namespace of its own for each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.cluster.binaries import NoBinaries, find_binaries
from tests.cluster.control_plane import ControlPlane
from thrifty.engines.server import KEY_VARIABLE


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane, ready. Each test opens a client of its own, on its own event loop."""
    try:
        find_binaries()
    except NoBinaries as error:
        pytest.skip(f"NO CLUSTER HERE: {error}")
    made = ControlPlane(tmp_path_factory.mktemp("plane"))

    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(made.stop())


@pytest.fixture(autouse=True)
def replica_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that replicas ask for, where the controller has it."""
    key = "k" * 40
    monkeypatch.setenv(KEY_VARIABLE, key)
    return key
