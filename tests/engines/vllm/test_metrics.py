"""vLLM's figures, from a page that vLLM 0.32 wrote with 20 requests at once and room for 16."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.engines.vllm.metrics import Figures, parse_figures

BUSY = Path(__file__).with_name("metrics_busy.txt")


def test_recorded_page_is_read() -> None:
    found = parse_figures(BUSY.read_bytes())
    assert (found.running, found.waiting) == (16, 4)
    assert found.kv_usage == pytest.approx(0.0952, abs=1e-4)
    assert (found.prefix_tokens, found.prefix_hits, found.preemptions) == (91, 0, 0)
    assert found.kv_tokens == 21632
    assert found.describe() == {
        "prefix_cache_tokens": 91, "prefix_cache_hits": 0, "preemptions": 0,
    }  # fmt: skip


def test_several_engines_are_added_up() -> None:
    page = (
        b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        b'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
        b'vllm:num_requests_waiting{engine="1",model_name="m"} 1.0\n'
        b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
        b'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5\n'
        b'vllm:spec_decode_num_draft_tokens_total{engine="0"} 10.0\n'
        b'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 7.0\n'
    )
    found = parse_figures(page)
    assert (found.running, found.waiting, found.kv_usage) == (7, 1, 0.5)
    assert found.describe()["speculation_acceptance"] == 0.7


def test_page_without_figures_is_idle() -> None:
    assert parse_figures(b"") == Figures()
    assert parse_figures(b"# HELP vllm:num_requests_running 9\nother 3\n") == Figures()
