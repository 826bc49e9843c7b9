"""Fixtures for tests of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts.web import WebServer, running_web
from thrifty.artifacts import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "models")


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server with configurable pages."""
    with running_web() as server:
        yield server
