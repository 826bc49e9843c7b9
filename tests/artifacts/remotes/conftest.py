"""Remotes to run the same tests on: a folder everywhere, real servers with `make test-remotes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.artifacts.remotes.places import FolderPlace, Place
from thrifty.artifacts import Store
from thrifty.artifacts.remotes import retries

SERVERS = ("s3", "gs", "az", "oci")


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are tried again at once: what is tested is that, not the waiting."""
    monkeypatch.setattr(retries, "DELAY_S", 0.01)


@pytest.fixture(
    params=["folder", *(pytest.param(name, marks=pytest.mark.remote) for name in SERVERS)]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty remote."""
    if request.param == "folder":
        return FolderPlace(tmp_path / "remote")
    from tests.artifacts.remotes.servers import start_server

    server = start_server(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.make_place()


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A second, empty store."""
    return Store(tmp_path / "other")
