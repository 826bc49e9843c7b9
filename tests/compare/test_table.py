"""Models side by side: measured once, under the same conditions; other measurements are listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compress.test_pipeline import MODEL
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.compare.table import ComparisonRequest, compare
from thrifty.compress.quantize.openvino import quantize_openvino
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import detect_machine
from thrifty.evaluate.suite import find_root
from thrifty.home import Home
from thrifty.speed_benchmark import SPEED, make_conditions, measure_speed

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def store(home: Home) -> Store:
    return Store(home.models)


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store, MODEL)


@pytest.fixture(scope="module")
def small(store: Store, made: Any) -> tuple[NamedVersion, Artifact]:
    version, artifact, _ = quantize_openvino(store, *made, "int8", out="tiny-int8")
    return version, artifact


@pytest.fixture(scope="module")
def texts(home: Home) -> tuple[str, str]:
    first = write_text(home.root / "first.txt", 3000, seed=9)
    return str(first), str(write_text(home.root / "second.txt", 3000, seed=10))


def record_speed(store: Store, artifact: Artifact, speed: float, **changes: Any) -> None:
    """Record a speed as the speed benchmark would."""
    from thrifty.engines.registry import choose_engine

    conditions = {**make_conditions(choose_engine("auto", artifact), detect_machine()), **changes}
    values = {"load_s": 1.0, "ttft_s": 0.1, "tokens_per_s": {"1": speed / 3, "8": speed},
              "memory_bytes": 1, "busy_before": 0.0}  # fmt: skip
    store.record_measurement(artifact.id, SPEED, conditions, values)


@pytest.fixture(scope="module")
def compared(store: Store, home: Home, made: Any, small: Any, texts: Any) -> dict[str, Any]:
    record_speed(store, made[1], 100.0)
    record_speed(store, small[1], 160.0)
    record_speed(store, small[1], 999.0, processor="another")
    return compare(
        ComparisonRequest(["tiny", "tiny-int8", "tiny-int8@v1"], domains=[texts[0]], tokens=2048),
        store=store,
        home=home,
        machine=detect_machine(),
    ).as_dict()


def test_models_stand_beside_what_the_first_was_made_from(compared: dict[str, Any]) -> None:
    assert compared["reference"] == "tiny@v1"
    assert [model["name"] for model in compared["models"]] == ["tiny@v1", "tiny-int8@v1"]
    whole, small = compared["models"]
    assert (whole["form"], small["form"]) == ("f16", "int8")
    assert small["size_bytes"] < whole["size_bytes"]
    assert 15.9 < whole["bits_per_weight"] < 20
    assert 8 < small["bits_per_weight"] < 12
    assert 0 <= whole["kl_divergence"]["mean"] < small["kl_divergence"]["mean"]
    assert small["kl_divergence"]["stderr"] > 0
    assert small["perplexity_ratio"] > 0.5
    assert small["tokens_per_s"]["8"] == 160.0
    assert [step["how"] for step in small["lineage"]] == [
        "int8, rounded to nearest",
        "pypi:tiny==1",
    ]
    assert [one["name"] for one in compared["domains"]] == ["first"]
    assert "tiny-int8@v1 is the same model as tiny-int8@v1" in compared["notes"]


def test_figures_of_another_machine_are_told_of_and_not_mixed_in(compared: dict[str, Any]) -> None:
    (note,) = [note for note in compared["notes"] if "under other conditions" in note]
    assert note.startswith("tiny-int8@v1: not shown, under other conditions: its speed")
    assert "another" in note


def test_what_is_recorded_is_enough_and_nothing_else_is_measured(
    compared: dict[str, Any], store: Store, home: Home
) -> None:
    steps: list[Any] = []
    again = compare(
        ComparisonRequest(["tiny", "tiny-int8"]),
        store=store,
        home=home,
        machine=detect_machine(),
        on_progress=steps.append,
    )
    assert again.as_dict()["models"] == compared["models"]
    assert not steps


def test_a_text_that_is_named_is_taken_as_far_as_it_was_before(
    compared: dict[str, Any], store: Store, home: Home, texts: Any
) -> None:
    found = compare(
        ComparisonRequest(["tiny-int8"], domains=[texts[0]], measure=False),
        store=store,
        home=home,
        machine=detect_machine(),
    ).as_dict()
    assert found["domains"][0]["tokens"] == 2048
    assert found["models"][0]["kl_divergence"] == compared["models"][1]["kl_divergence"]


def test_figures_on_another_text_are_not_put_into_the_column(
    compared: dict[str, Any], store: Store, home: Home, texts: Any
) -> None:
    found = compare(
        ComparisonRequest(["tiny", "tiny-int8"], domains=[texts[1]], tokens=2048, measure=False),
        store=store,
        home=home,
        machine=detect_machine(),
    ).as_dict()
    assert [model["kl_divergence"] for model in found["models"]] == [None, None]
    assert sum("it on first (" in note for note in found["notes"]) == 2


def test_a_text_that_has_changed_is_not_taken_for_the_one_before(
    compared: dict[str, Any], store: Store, home: Home, made: Any, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.txt", 3000, seed=11)
    arguments: dict[str, Any] = {"store": store, "home": home, "machine": detect_machine()}
    compare(ComparisonRequest(["tiny"], domains=[str(text)], tokens=1024), **arguments)
    write_text(text, 3000, seed=12)
    found = compare(ComparisonRequest(["tiny", "tiny-int8"], tokens=1024), **arguments)
    assert any("has changed since other models were measured on it" in note for note in found.notes)


def test_the_root_is_as_far_back_as_there_are_models(store: Store, made: Any, small: Any) -> None:
    assert find_root(store, small[0]) == made[0]
    assert find_root(store, made[0]) == made[0]
    lost = NamedVersion("x", 1, "y", "", Lineage(parents=(Parent("gone", "gone@v1"),)))
    assert find_root(store, lost) == lost


@pytest.mark.service
def test_a_speed_benchmark_measures_a_replica_and_leaves_nothing_behind(
    store: Store, home: Home, small: Any
) -> None:
    from thrifty.fleet.process import find_ours, start_process

    # The remains of a killed benchmark are ended.
    left = start_process(
        ["sleep", "600"], role="replica", process_id="own-replica-0", home=home.root,
        log_path=home.logs / "left.log",
    )  # fmt: skip
    machine = detect_machine()
    store.record_measurement(small[1].id, SPEED, {"engine": "none"}, {})
    (store.root / "figures" / f"{small[1].id}.json").unlink()
    found = measure_speed(store, home, *small, machine)
    assert found.values["load_s"] > 0
    assert found.values["ttft_s"] > 0
    assert found.values["tokens_per_s"]["8"] > found.values["tokens_per_s"]["1"] * 0.8
    assert found.values["memory_bytes"] > 50e6
    assert found.conditions["threads"] == machine.core_count
    assert not left.alive
    assert not find_ours(home.root)
    assert measure_speed(store, home, *small, machine) == found
    again = measure_speed(store, home, *small, machine, again=True)
    assert again.values != found.values
    speeds = [one for one in store.read_measurements(small[1].id) if one.kind == SPEED]
    assert [one.values for one in speeds] == [again.values], "the earlier ones are replaced"


def test_conditions_name_the_engine_and_its_version() -> None:
    from thrifty.engines.registry import find_engine

    machine = detect_machine()
    assert make_conditions(find_engine("openvino"), machine)["engine"].startswith("openvino 20")
    assert make_conditions(EchoEngine(), machine)["engine"] == "echo"
    assert json.dumps(make_conditions(EchoEngine(), machine))
