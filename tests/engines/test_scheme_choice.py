"""What `compress: auto` comes to: measured here, measured here with another model, or neither."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prepare import put
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.machine import Machine, detect_machine
from thrifty.engines.openvino.adapter import OpenVinoEngine
from thrifty.engines.scheme_choice import (
    CANDIDATE,
    choose_scheme,
    describe_speed,
    find_candidates,
    make_machine_conditions,
)
from thrifty.graphs.arithmetic import LIMIT_VARIABLE

ENGINE = OpenVinoEngine()
MACHINE = dataclasses.replace(detect_machine(), features=frozenset({"avx2"}))
OTHER = dataclasses.replace(detect_machine(), features=frozenset({"avx2", "avx512_vnni"}))
# As measured on a processor with AVX2 only, at 1, 8 and 32 streams.
F16, INT8, INT4 = (30, 100, 138), (49, 99, 131), (42, 89, 104)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two checkpoints."""
    folder = tmp_path_factory.mktemp("choice") / "models"
    store = Store(folder)
    put(store)
    with store.stage("other") as stage:
        other = Llama(vocab=300, hidden=32).write_safetensors(stage / "model")
        from tests.artifacts.stored import SOURCE

        store.add(other, "other", SOURCE)
    return folder


@pytest.fixture
def store(kept: Path, tmp_path: Path) -> Store:
    shutil.copytree(kept, tmp_path / "models", symlinks=True)
    return Store(tmp_path / "models")


def find(store: Store, name: str) -> tuple[NamedVersion, Artifact]:
    version = next(one for one in store.versions() if one.name == name)
    return version, store.load(version.artifact)


def record(store: Store, name: str, machine: Machine, **speeds: tuple[int, ...]) -> None:
    for scheme, found in speeds.items():
        conditions: dict[str, Any] = make_machine_conditions(ENGINE, machine)
        conditions |= {"scheme": scheme, "loads": [1, 8, 32]}
        values = {"tokens_per_s": dict(zip(("1", "8", "32"), map(float, found), strict=True))}
        store.record_measurement(find(store, name)[1].id, CANDIDATE, conditions, values)


def test_nothing_measured_is_the_default_of_the_processor(store: Store) -> None:
    for machine, words in ((MACHINE, "no faster under load"), (OTHER, "at every load")):
        choice = choose_scheme(ENGINE, store, find(store, "tiny")[1], machine)
        assert choice.scheme == "int8"
        assert "not measured here" in choice.reason
        assert words in choice.reason


def test_the_faster_form_over_all_loads_is_taken(store: Store) -> None:
    record(store, "tiny", MACHINE, none=F16, int8=INT8, int4=INT4)
    choice = choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE)
    assert choice.scheme == "int8"
    assert "int8 49 / 99 / 131 tokens/s at 1 / 8 / 32 streams" in choice.reason
    assert "none 30 / 100 / 138" in choice.reason
    record(store, "tiny", MACHINE, none=F16, int8=(31, 70, 80))
    assert choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE).scheme == "none"
    # Equal speeds: the smaller form.
    record(store, "tiny", MACHINE, none=F16, int8=F16)
    assert choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE).scheme == "int8"


def test_four_bits_are_never_taken_unasked(store: Store) -> None:
    record(store, "tiny", MACHINE, none=F16, int8=INT8, int4=(200, 300, 400))
    assert choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE).scheme == "int8"


def test_another_model_of_this_machine_tells_where_the_own_was_not_measured(store: Store) -> None:
    record(store, "other", MACHINE, none=(9, 9, 9), int8=(1, 1, 1))
    choice = choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE)
    assert choice.scheme == "none"
    assert "with other@v1" in choice.reason
    record(store, "tiny", MACHINE, none=F16)
    assert choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE).scheme == "none"
    record(store, "tiny", MACHINE, int8=INT8)
    assert choose_scheme(ENGINE, store, find(store, "tiny")[1], MACHINE).scheme == "int8"


def test_what_another_machine_measured_does_not_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    record(store, "tiny", OTHER, none=(9, 9, 9), int8=(1, 1, 1))
    tiny = find(store, "tiny")[1]
    assert choose_scheme(ENGINE, store, tiny, MACHINE).scheme == "int8"
    assert choose_scheme(ENGINE, store, tiny, OTHER).scheme == "none"
    assert find_candidates(store, tiny.id, ENGINE, MACHINE) == {}
    # Nor what it measured with fewer of its instructions.
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX2")
    assert choose_scheme(ENGINE, store, tiny, OTHER).scheme == "int8"


def test_machines_are_told_apart_by_what_they_compute_with() -> None:
    assert MACHINE.id == dataclasses.replace(MACHINE, memory_bytes=1).id
    fewer = dataclasses.replace(MACHINE, cores=(0,) * (len(MACHINE.cores) + 1))
    assert len({MACHINE.id, OTHER.id, fewer.id}) == 3


def test_speeds_are_told_with_their_loads(store: Store) -> None:
    record(store, "tiny", MACHINE, int4=INT4)
    (found,) = find_candidates(store, find(store, "tiny")[1].id, ENGINE, MACHINE).values()
    assert describe_speed(found) == "42 / 89 / 104 tokens/s at 1 / 8 / 32 streams"
