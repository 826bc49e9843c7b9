"""One Ray cluster for the tests of a run that harm no node of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.ray.cluster import KEY, TOKEN, Cluster
from thrifty.engines.server import KEY_VARIABLE


@pytest.fixture(autouse=True)
def replica_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that replicas ask for, and the token that Ray does, where the controller has them."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip(
            "NO RAY HERE: run make test-ray, which installs it in an environment of its own"
        )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two nodes."""
    _require_ray()
    made = Cluster(tmp_path_factory.mktemp("nodes"))
    try:
        made.start(2)
        yield made
    finally:
        made.stop()


@pytest.fixture
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of the test's own, not started."""
    _require_ray()
    made = Cluster(tmp_path_factory.mktemp("nodes"))
    try:
        yield made
    finally:
        made.stop()
