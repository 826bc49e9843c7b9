"""The load of candidates: how it is named, shared among replicas, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thrifty.bench.client import RequestResult
from thrifty.bench.load import LoadPlan, LoadResult
from thrifty.bench.summary import LatencyObjective
from thrifty.errors import BenchError
from thrifty.optimize.load import count_good, parse_load, share_load


def write_trace(path: Path, count: int = 6) -> Path:
    lines = [
        json.dumps({"at_s": number, "prompt_tokens": 5, "max_tokens": 4}) for number in range(count)
    ]
    path.write_text("\n".join(lines))
    return path


def test_streams_are_shared_among_replicas() -> None:
    plans = share_load(parse_load("9"), 2, 4)
    assert [plan.concurrency for plan in plans] == [5, 4]


def test_a_trace_is_shared_in_turn_and_cut_for_a_trial(tmp_path: Path) -> None:
    load = parse_load(str(write_trace(tmp_path / "trace.jsonl")))
    assert (load.streams, load.duration_s) == (None, 5)
    whole = share_load(load, 2, 5)
    assert [[one.at_s for one in plan.trace or ()] for plan in whole] == [[0, 2, 4], [1, 3, 5]]
    trial = share_load(load, 1, 2)
    assert [one.at_s for one in trial[0].trace or ()] == [0, 1, 2]


@pytest.mark.parametrize("text", ["0", "5000", "eight", ""])
def test_no_load_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="--load is"):
        parse_load(text)


def test_a_trace_of_a_moment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no duration"):
        parse_load(str(write_trace(tmp_path / "trace.jsonl", 1)))


def make_result(*ttfts_s: float | None) -> LoadResult:
    """Requests that began inside the window, with ten tokens each; None: an error."""
    samples = [
        RequestResult(1.0, error="refused") if ttft_s is None else
        RequestResult(1.0, 9.0, [1.0 + ttft_s, 9.0], 5, 10)
        for ttft_s in ttfts_s
    ]  # fmt: skip
    return LoadResult(LoadPlan(10.0, concurrency=len(samples)), samples, 0.0, 10.0)


def test_only_tokens_within_the_objective_count() -> None:
    result = make_result(0.1, 0.1, 3.0, None)
    _, good, share = count_good(result, LatencyObjective(ttft_s=1.0))
    assert share == 0.5
    assert good[0] == pytest.approx(3 * 10 / 10 * 2 / 3)
    assert good[1] <= good[0] <= good[2]
    _, everything, _ = count_good(result, None)
    assert everything[0] == pytest.approx(3.0)


def test_where_nothing_was_answered_the_error_says_so() -> None:
    with pytest.raises(BenchError, match="no request was answered: refused"):
        count_good(make_result(None, None), None)
