"""Measurements stay with their model and record their conditions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.artifacts.stored import put
from thrifty.artifacts import Store
from thrifty.artifacts.measurements import find_measurement
from thrifty.errors import ArtifactError, IntegrityError

HERE = {"engine": "openvino 1", "processor": "P"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def test_figures_are_found_by_what_they_were_measured_on(store: Store) -> None:
    version, artifact = put(store)
    assert store.read_measurements(artifact.id) == ()
    made = store.record_measurement(artifact.id, "speed", HERE, {"load_s": 1.5})
    there = {**HERE, "processor": "Q"}
    store.record_measurement(artifact.id, "speed", there, {"load_s": 9.0})
    recorded = store.read_measurements(artifact.id)
    assert find_measurement(recorded, "speed", HERE) == made
    other = find_measurement(recorded, "speed", there)
    assert other is not None
    assert other.values == {"load_s": 9.0}
    assert find_measurement(recorded, "quality", HERE) is None
    assert find_measurement(recorded, "speed", {**HERE, "threads": 2}) is None
    assert made.made_by.startswith("thrifty ")
    assert store.find("tiny")[0] == version, "the lineage does not change"


def test_new_figures_take_the_place_of_those_under_the_same_conditions(store: Store) -> None:
    _, artifact = put(store)
    for load_s in (1.0, 2.0):
        store.record_measurement(artifact.id, "speed", HERE, {"load_s": load_s})
    store.record_measurement(artifact.id, "quality", HERE, {"x": (1, 2)})
    assert [(one.kind, one.values) for one in store.read_measurements(artifact.id)] == [
        ("speed", {"load_s": 2.0}), ("quality", {"x": [1, 2]}),
    ]  # fmt: skip


def test_figures_go_with_their_model(store: Store) -> None:
    version, artifact = put(store)
    store.record_measurement(artifact.id, "speed", HERE, {"load_s": 1.0})
    kept, other = put(store, "kept", 1)
    store.record_measurement(other.id, "speed", HERE, {"load_s": 1.0})
    store.remove(version.label)
    store.collect_garbage()
    assert store.read_measurements(artifact.id) == ()
    assert len(store.read_measurements(kept.artifact)) == 1


def test_there_are_no_figures_of_what_is_not_stored(store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not in"):
        store.record_measurement("0" * 24, "speed", HERE, {})


def test_damaged_figures_are_said_to_be(store: Store) -> None:
    _, artifact = put(store)
    store.record_measurement(artifact.id, "speed", HERE, {"load_s": 1.0})
    (path,) = (store.root / "figures").glob("*.json")
    path.write_text("{")
    with pytest.raises(IntegrityError, match="delete it, and the model will be measured again"):
        store.read_measurements(artifact.id)
