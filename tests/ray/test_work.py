"""Builds of data sets and trainings on a Ray cluster come to what one machine comes to."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.curate.made import make_chats
from tests.curate.test_build import build, digests, removed, write_lines
from tests.ray.cluster import Cluster
from tests.train.test_run import find_workers, store, train, write
from thrifty.artifacts import Store
from thrifty.errors import TrainingError
from thrifty.home import Home
from thrifty.train.rows import Method

__all__ = ["store"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_build_on_a_cluster_has_the_bytes_of_one_here(
    cluster: Cluster, home: Home, tmp_path: Path
) -> None:
    pytest.importorskip("ray.data", reason="NO RAY DATA HERE: run make test-ray")
    rows = make_chats(60, words=150)
    path = write_lines(tmp_path / "chats.jsonl", [*rows, *rows[:10]])
    sources = [{"path": str(path)}]
    here = build(home, sources, "here")
    there = build(home, sources, "there", piece_bytes=20_000, ray=cluster.address)
    assert digests(here) == digests(there)
    assert removed(here) == removed(there) == {"exact": 10}


def test_a_training_on_a_cluster_learns_what_one_here_does_and_goes_on(
    cluster: Cluster, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.train.run.EVALUATIONS", 3)
    data = write(tmp_path, Method.SFT)
    more = {"epochs": 12, "patience": 1000, "learning_rate": 1e-3}
    trainings = Home(tmp_path / "there").trainings

    def kill() -> None:
        while not list(trainings.glob("*/state.json")):
            time.sleep(0.05)
        for pid in find_workers(str(trainings)):
            os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    with pytest.raises(TrainingError, match="it was killed"):
        train(store, tmp_path / "there", data, Method.SFT, "there", ray=cluster.address, **more)
    watcher.join(60)
    there = train(
        store, tmp_path / "there", data, Method.SFT, "there", ray=cluster.address, resume=True, **more
    )[0].lineage.figures  # fmt: skip
    here = train(store, tmp_path / "here", data, Method.SFT, "here", **more)[0].lineage.figures
    np.testing.assert_allclose(there["losses"], here["losses"], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(there["held_out"], here["held_out"], rtol=1e-3, atol=2e-3)
