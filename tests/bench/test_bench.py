"""The load generator: its requests, their arrival, and the correctness of its statistics."""

from __future__ import annotations

import json
import random
import statistics
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parts import run_thrifty, running_echo, running_server
from thrifty.bench.check import BEGINNING, QUESTION, ask_question
from thrifty.bench.client import MEASUREMENT_LINE, RequestResult, Target
from thrifty.bench.load import LoadPlan, LoadResult, run_load
from thrifty.bench.summary import bootstrap, parse_objective, summarize
from thrifty.bench.workload import Lengths, Workload, parse_lengths, read_trace
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.server.app import ModelServer
from thrifty.errors import BenchError
from thrifty.http.origin import parse_origin
from thrifty.http.server import Exchange
from thrifty.text.tokenizer import TextTokenizer

# Workloads


def test_the_same_seed_asks_the_same_and_levels_differ() -> None:
    workload = Workload(seed=3)
    assert list(islice(workload.requests("a"), 5)) == list(
        islice(Workload(seed=3).requests("a"), 5)
    )
    assert list(islice(workload.requests("a"), 5)) != list(islice(workload.requests("b"), 5))
    assert list(islice(workload.requests("a"), 5)) != list(
        islice(Workload(seed=4).requests("a"), 5)
    )


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [
        ("128", 128, 128, 128),
        ("uniform:64-256", 160, 64, 256),
        ("normal:100,10", 100, 40, 160),
        ("lognormal:100,0.5", 113, 5, 2000),
    ],
)
def test_lengths_follow_their_distribution(text: str, mean: float, low: int, high: int) -> None:
    rng = random.Random(1)
    lengths = parse_lengths(text)
    drawn = [lengths.draw(rng) for _ in range(5000)]
    assert statistics.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert low <= min(drawn)
    assert max(drawn) <= high


@pytest.mark.parametrize("text", ["", "x", "uniform:9-3", "uniform:3", "normal:3", "pareto:1,2"])
def test_bad_lengths_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is not a length"):
        parse_lengths(text)


def test_prompts_share_the_beginnings_they_are_told_to() -> None:
    workload = Workload(Lengths("fixed", 100, 0), prefix_share=0.6, prefixes=3)
    requests = list(islice(workload.requests(), 300))
    beginnings = {tuple(ask.prompt.split()[:60]) for ask in requests}
    assert len(beginnings) == 3
    assert len({ask.prompt for ask in requests}) == 300
    assert {len(ask.prompt.split()) for ask in requests} == {100}


def test_repeats_come_as_often_as_told() -> None:
    requests = list(islice(Workload(repeat_share=0.3).requests(), 2000))
    fresh = len({ask.prompt for ask in requests})
    assert 0.65 < fresh / 2000 < 0.75


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"at_s": 2, "prompt": "b", "max_tokens": 3}\n\n'
                    '{"at_s": 1, "prompt_tokens": 7, "output_tokens": 4}\n')  # fmt: skip
    first, second = read_trace(path)
    assert (len(first.prompt.split()), first.max_tokens, first.at_s) == (7, 4, 1.0)
    assert (second.prompt, second.at_s) == ("b", 2.0)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"at_s": 1}', '{"at_s": "x", "prompt": "a", "max_tokens": 1}']
)
def test_a_bad_trace_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"at_s": 1, "prompt": "a", "max_tokens": 1}\n' + line)
    with pytest.raises(BenchError, match="line 2"):
        read_trace(path)


# Statistics


def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap(rng.normal(10, 2, 60), np.mean, seed=trial)
        hits += low <= 10 <= high
    assert 178 <= hits <= 198


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=50))
def test_a_bootstrap_interval_holds_its_statistic(values: list[float]) -> None:
    array = np.array(values)
    low, high = bootstrap(array, np.median)
    assert low - 1e-9 <= float(np.median(array)) <= high + 1e-9


def sample(
    start: float, ttft: float, tpot: float, tokens: int, error: str | None = None
) -> RequestResult:
    times = [start + ttft + index * tpot for index in range(tokens)]
    return RequestResult(start, times[-1], times, 10, tokens, 4, error)


def test_figures_of_a_known_load() -> None:
    samples = [sample(index * 0.1, 0.2, 0.01, 11) for index in range(100)]
    result = LoadResult(LoadPlan(10, concurrency=3), samples, 0.0, 10.0)
    level = summarize(result, parse_objective("ttft=250ms,tpot=5ms"))
    assert level.requests == 100
    assert level.errors == 0
    assert level.ttft_ms is not None
    assert level.tpot_ms is not None
    assert level.ttft_ms.p50 == pytest.approx(200)
    assert level.tpot_ms.p99 == pytest.approx(10)
    # The last requests' tokens come after the window and do not count.
    assert level.output_tokens_per_s.value == pytest.approx(11 * 97.5 / 10, rel=0.02)
    assert (
        level.output_tokens_per_s.low
        <= level.output_tokens_per_s.value
        <= level.output_tokens_per_s.high
    )
    assert level.cached_token_share == pytest.approx(0.4)
    assert level.good_share == 0.0
    assert summarize(result, parse_objective("ttft=250ms,tpot=15ms")).good_share == 1.0


def test_failed_requests_count_as_errors_and_are_never_good() -> None:
    samples = [sample(0, 0.1, 0.01, 5), sample(0, 0.1, 0.01, 5, error="500: broken")]
    level = summarize(
        LoadResult(LoadPlan(1, concurrency=1), samples, 0.0, 1.0), parse_objective("e2e=1s")
    )
    assert (level.requests, level.errors, level.good_share) == (2, 1, 0.5)
    assert level.error_samples == ["500: broken"]


# Against a real server


@pytest.mark.slow
async def test_closed_loop_measures_what_the_server_does() -> None:
    async with running_echo(ttft_s=0.05, tpot_s=0.01) as url:
        target = Target(parse_origin(url), "echo")
        workload = Workload(Lengths("fixed", 20, 0), Lengths("fixed", 10, 0))
        plan = LoadPlan(duration_s=1.5, warm_up_s=0.3, concurrency=4)
        level = summarize(await run_load(target, workload, plan))
        assert level.errors == 0
        assert level.ttft_ms is not None
        assert level.tpot_ms is not None
        assert level.e2e_ms is not None
        assert level.ttft_ms.p50 >= 50
        assert level.tpot_ms.p50 >= 10
        # A request takes at least 50 + 9 x 10 ms: four clients get at most 286 tokens per second,
        # and fewer on a busy machine, where requests take longer.
        assert level.output_tokens_per_s.value < 290
        assert level.output_tokens_per_s.value == pytest.approx(4e4 / level.e2e_ms.p50, rel=0.25)
        assert level.output_tokens_mean == 10


@pytest.mark.slow
async def test_poisson_arrivals_come_at_their_rate_and_do_not_wait() -> None:
    async with running_echo(ttft_s=0.3, slots=1) as url:
        target = Target(parse_origin(url), "echo")
        workload = Workload(Lengths("fixed", 5, 0), Lengths("fixed", 2, 0))
        plan = LoadPlan(duration_s=1.0, warm_up_s=0.0, rate=20.0, seed=5)
        level = summarize(await run_load(target, workload, plan))
        assert 10 < level.requests < 35
        assert level.ttft_ms is not None
        # The server handles three per second, so the queue grows, and the waiting requests count.
        assert level.ttft_ms.p95 > 1500


async def test_a_server_that_refuses_is_told_with_the_next_step() -> None:
    async def refuse(exchange: Exchange) -> None:
        exchange.respond(401, b'{"error": {"message": "no key"}}')

    async with running_server(refuse) as (url, _):
        with pytest.raises(BenchError, match="give the key with --key"):
            await run_load(Target(parse_origin(url), "m"), Workload(), LoadPlan(1, concurrency=1))


@pytest.mark.slow
def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    import asyncio
    import subprocess
    import sys

    async def run() -> subprocess.CompletedProcess[str]:
        async with running_echo(tpot_s=0.001) as url:
            arguments = [
                "bench", "serve", "--url", url, "--concurrency", "1,4", "--duration", "500ms",
                "--warm-up", "100ms", "--output-tokens", "8", "--slo", "ttft=1s", "--json",
                "--plot", str(tmp_path / "p.png"), "--prefix-share", "0.5", "--repeat-share", "0.1",
            ]  # fmt: skip
            return await asyncio.to_thread(run_thrifty, tmp_path, *arguments)

    result = asyncio.run(run())
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["model"] == "echo"
    assert [level["concurrency"] for level in report["runs"]] == [1, 4]
    for level in report["runs"]:
        assert level["errors"] == 0
        assert level["output_tokens_per_s"]["value"] > 10
        assert level["ttft_ms"]["p99"] >= level["ttft_ms"]["p50"] > 0
        assert level["good_share"] == 1.0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sys.executable


def test_measurements_say_so_and_load_tests_do_not() -> None:
    origin = parse_origin("http://127.0.0.1:1/v1")
    assert MEASUREMENT_LINE in Target(origin, "m", is_measurement=True).headers
    assert MEASUREMENT_LINE not in Target(origin, "m", key="k").headers


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", None])
async def test_a_model_without_a_chat_template_continues_a_text(template: str | None) -> None:
    backend = EchoBackend()
    tokenizer = TextTokenizer(make_tokenizer().tokenizer, template)
    honours = EchoEngine.traits.honours or ()
    model = ModelServer("echo", backend, tokenizer, engine="echo", honours=honours)
    await model.start()
    async with running_server(model.handle) as (url, _):
        answer = await ask_question(url, "echo", None)
    await backend.stop()
    assert answer.chat is (template is not None)
    assert answer.text == answer.prompt
    assert answer.prompt == (QUESTION if template else BEGINNING)


async def test_a_question_that_is_refused_says_why() -> None:
    async with running_echo() as url:
        with pytest.raises(BenchError, match="answered with 404: The model 'other' does not exist"):
            await ask_question(url, "other", None)
