"""A whole search on a tiny model: real stages, real replicas, a crash and a kill in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.artifacts.models import Llama
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from tests.optimize.search_tiny import CANDIDATES, CRASHING, make_request
from tests.parts import wait_until
from thrifty.artifacts import Store
from thrifty.artifacts.verdicts import find_verdict
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import find_engine
from thrifty.errors import BenchError, CompressionError
from thrifty.evaluate.suite import find_root
from thrifty.home import Home
from thrifty.optimize.candidate import Candidates, Recipe, generate_candidates, generate_settings
from thrifty.optimize.lab import MachineLab
from thrifty.optimize.load import parse_load
from thrifty.optimize.plot import plot_search
from thrifty.optimize.report import make_report, make_row
from thrifty.optimize.run import Optimized, OptimizeRequest, make_bench, optimize
from thrifty.optimize.standing import Status
from thrifty.optimize.steps import JUDGE, OutOfTime, Step

pytestmark = pytest.mark.engine

MODEL = Llama(vocab=257, layers=2, head_dim=32, kv_heads=2, heads=2, hidden=64, inner=128,
              context=1024, tied=True)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("optimize"))
    put(Store(home.models), MODEL)
    write_text(home.root / "learned.txt", 30_000, seed=5)
    write_text(home.root / "judged.txt", 12_000, seed=9)
    return home


def run(home: Home, tried: int = 4, **changes: Any) -> tuple[Optimized, list[str]]:
    """A search over the first `tried` of the candidates; also the steps that it ran."""
    steps: list[str] = []
    found = optimize(
        make_request(home, **changes), store=Store(home.models), home=home,
        machine=detect_machine(), find_candidates=lambda _: Candidates(CANDIDATES.feasible[:tried]),
        on_step=lambda step, left_s: steps.append(step.key),
    )  # fmt: skip
    return found, steps


@pytest.fixture(scope="module")
def killed(home: Home) -> list[str]:
    """The keys of the steps that a search had ended when it was killed."""
    command = [sys.executable, "-m", "tests.optimize.search_tiny", str(home.root)]
    process = subprocess.Popen(command, start_new_session=True)
    journal = home.optimizations / "journal.jsonl"
    try:
        wait_until(
            lambda: journal.exists() and journal.read_bytes().count(b'"ended"') >= 4, timeout_s=240
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    # A fault is no end for the next run.
    return [line["key"] for line in lines if "ended" in line and line["fault"] is None]


@pytest.fixture(scope="module")
def searched(home: Home, killed: list[str]) -> tuple[Optimized, list[str]]:
    return run(home)


def test_a_killed_search_goes_on_where_it_was(
    searched: tuple[Optimized, list[str]], killed: list[str]
) -> None:
    found, steps = searched
    assert len(killed) >= 3
    assert not {key.rpartition(" ")[0] for key in killed} & set(steps)
    assert found.outcome.winner is not None


def test_a_candidate_whose_engine_does_not_start_fails_alone(
    searched: tuple[Optimized, list[str]],
) -> None:
    by_id = {one.candidate.id: one for one in searched[0].outcome.standings}
    failed = by_id[CRASHING.id]
    assert failed.status is Status.FAILED
    assert "too few to work with" in failed.why
    assert [one for one in by_id.values() if one.status is Status.FAILED] == [failed]


def test_the_winner_is_registered_with_what_found_it(
    searched: tuple[Optimized, list[str]], home: Home
) -> None:
    found, store = searched[0], Store(home.models)
    assert found.registered is not None
    assert found.registered.label == "tiny-optimized@v1"
    version, _ = store.find("tiny-optimized")
    search = version.lineage.recipe["search"]
    assert search["candidate"] == found.outcome.winner.candidate.id  # type: ignore[union-attr]
    assert search["command"].startswith("thrifty optimize tiny --max-drop 0.2")
    assert find_root(store, version).label == "tiny@v1"
    verdict = find_verdict(store, version)
    assert verdict is not None
    assert verdict.values["passed"]
    spec = yaml.safe_load(found.snippet)
    assert spec["model"] == version.label


def test_it_is_shown_whole(searched: tuple[Optimized, list[str]]) -> None:
    found = searched[0]
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert data["winner"]["registered"] == "tiny-optimized@v1"
    assert len(data["candidates"]) == len(found.outcome.standings)
    assert all(one["status"] != "open" and one["why"] for one in data["candidates"])
    page = make_report(found)
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")
    for one in found.outcome.standings:
        assert one.candidate.id in page
        assert len(make_row(one)) == 9
    assert "thrifty optimize tiny" in page


def test_it_is_drawn(searched: tuple[Optimized, list[str]], tmp_path: Path) -> None:
    plot_search(searched[0], tmp_path / "plots" / "search.png")
    assert (tmp_path / "plots" / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_ends_with_what_is_known_and_the_code_3(
    searched: tuple[Optimized, list[str]], home: Home
) -> None:
    """Its budget was spent before: it starts nothing, and proves nothing."""
    request = make_request(home)
    command = [
        sys.executable, "-m", "thrifty", "optimize", request.model, "--max-drop", "0.2", "--load", "2",
        "--domain", request.domains[0], "--text", request.text[0], "--budget", "2s", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "THRIFTY_HOME": str(home.root)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 3, ended.stderr
    assert "nothing was" in ended.stderr
    found = json.loads(ended.stdout)
    assert found["winner"] is None
    assert found["nearest"]["worst"] == "judged"
    assert len(found["candidates"]) > 20


def test_the_same_search_costs_nothing_and_finds_the_same(
    searched: tuple[Optimized, list[str]], home: Home
) -> None:
    again, steps = run(home)
    assert {step.split()[1] for step in steps} <= {CRASHING.timed.id}, "faults are met anew"
    assert again.outcome.winner is not None
    assert again.registered == searched[0].registered


def test_where_nothing_is_within_the_bound_there_is_no_winner(
    searched: tuple[Optimized, list[str]], home: Home
) -> None:
    """On the drops that are there already: an objective that no answer meets."""
    found, _ = run(home, tried=1, slo="ttft=1us", budget_s=120.0)
    assert found.outcome.winner is None
    assert found.registered is None
    assert found.as_dict()["nearest"] is not None


def test_a_budget_that_is_too_short_says_what_would_do(home: Home) -> None:
    with pytest.raises(
        BenchError, match=r"too short for one candidate; about .* \(--budget \d+m\)"
    ):
        run(home, budget_s=0.5, load="3")


def test_what_cannot_be_searched_is_refused(home: Home) -> None:
    with pytest.raises(BenchError, match="neither"):
        run(home, load="nowhere.jsonl")
    store = Store(home.models)
    prepared = next(one for one in store.versions() if one.name == "tiny-int8-openvino")
    with pytest.raises(CompressionError, match="name the checkpoint"):
        run(home, model=prepared.label)


def test_candidates_come_from_traits_and_machine(home: Home) -> None:
    engine, machine = find_engine("openvino"), detect_machine()
    _, artifact = Store(home.models).find("tiny@v1")
    first = generate_candidates(engine, artifact, machine, 8)
    again = generate_candidates(engine, artifact, machine, 8)
    ids = [one.id for one in first.feasible]
    assert ids == [one.id for one in again.feasible]
    assert len(set(ids)) == len(ids)
    assert first.feasible[0].settings.deviations == 0
    # A bound on requests above the load changes nothing, so it is not tried.
    for one in generate_settings(engine.traits.tunable, machine, 8):
        assert one.as_options().get("max_batch", 1) < 8
        assert one.replicas <= machine.core_count
    plain = generate_candidates(engine, artifact, machine, 8, may_train=False)
    assert not any(one.recipe.pruned for one in plain.feasible)
    assert Recipe("int8", 0.9, 50_000) in {one.recipe for one in first.feasible}


def test_a_step_is_stopped_when_the_time_is_up(home: Home) -> None:
    """What it takes longer than predicted is not spent."""
    store, machine, request = Store(home.models), detect_machine(), make_request(home)
    bench, _ = make_bench(request, parse_load(request.load), store, home, lambda _: None)
    lab = MachineLab(bench, store, home, machine)
    step = Step(JUDGE, CANDIDATES.feasible[0].form, 512)
    with pytest.raises(OutOfTime):
        lab.run(step, lambda: -1.0)
    assert set(lab.run(step)["domains"]) == {"judged"}


def test_a_request_repeats_itself() -> None:
    request = OptimizeRequest("a model", 0.1, "ttft=1s", "8", 600.0, domains=("a=b.txt",))
    assert request.as_command() == (
        "thrifty optimize 'a model' --max-drop 0.1 --slo ttft=1s --load 8 --budget 10m "
        "--domain a=b.txt"
    )


def test_costs_are_at_the_price_that_a_spec_says(
    searched: tuple[Optimized, list[str]], home: Home
) -> None:
    relative = searched[0]
    assert relative.relative
    assert relative.as_dict()["price_per_hour"] == 1.0
    spec = home.root / "thrifty.yaml"
    spec.write_text("machine: {watts: 100, per_kwh: 0.25}\n")
    found, steps = run(home, spec=spec)
    faults = {CRASHING.timed.id}
    assert {step.split()[1] for step in steps} <= faults, "another price needs no measurement"
    told = found.as_dict()
    assert (told["price_per_hour"], told["relative"]) == (0.025, False)
    assert told["price_basis"].startswith("electricity: 100 W at 0.25 a kWh")
    assert f"--spec {spec}" in told["command"]
    before, after = relative.outcome.winner, found.outcome.winner
    assert before is not None
    assert before.cost is not None
    assert after is not None
    assert after.cost is not None
    assert after.cost.value == pytest.approx(0.025 * before.cost.value)
    assert "The machine costs 0.025 an hour (electricity" in make_report(found)
