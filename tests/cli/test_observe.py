"""`thrifty observe export` and `thrifty top`, as scripts and people call them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.parts import running_echo, running_gateway, until
from thrifty.cli.app import app
from thrifty.cli.top import make_view
from thrifty.control.live import compute_figures, find_quantile, read_live
from thrifty.db.live import RecentRequest
from thrifty.home import HOME_VARIABLE, Home
from thrifty.observe.burn import BURNS, LEAST_OBJECTIVE
from thrifty.observe.dashboard import make_dashboard
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.rules import make_rules

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def known_names() -> set[str]:
    names = set()
    for family in GatewayMetrics().registry.collect():
        names.add(family.name + ("_total" if family.type == "counter" else ""))
        if family.type == "histogram":
            names.add(f"{family.name}_bucket")
    return names


def test_dashboard_and_rules_name_metrics_that_there_are() -> None:
    written = json.dumps([make_dashboard(), make_rules(0.99, 100)])
    named = set(re.findall(r"thrifty_\w+", written))
    assert len(named) > 40
    assert named <= known_names()


def test_panels_do_not_overlap_and_are_numbered() -> None:
    panels = make_dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))


def test_burn_rates_are_those_of_the_workbook() -> None:
    hours = [(burn.rate, burn.long_s / 3600, burn.short_s / 3600) for burn in BURNS]
    assert hours == [(14.4, 1, 5 / 60), (6, 6, 0.5), (3, 24, 2), (1, 72, 6)]
    assert all(burn.rate * (1 - LEAST_OBJECTIVE) < 1 for burn in BURNS), (
        "some could never be reached"
    )


def test_files_are_written_and_a_folder_that_cannot_be_is_an_error(
    home: Home, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["observe", "export", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["files"]) == {path.name for path in out.iterdir()}
    rules = yaml.safe_load((out / "thrifty-rules.yaml").read_text())
    assert {group["name"] for group in rules["groups"]} >= {"thrifty-objectives"}
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["observe", "export", str(tmp_path / "file")])
    assert result.exit_code != 0
    assert "cannot be written" in str(result.exception)


def recent(**changes: Any) -> RecentRequest:
    values = {
        "at_s": 0.0, "deployment": "d", "version": "v", "replica": "r", "status": 200, "error": None,
        "stream": True, "cache": "miss", "prompt_tokens": 10, "completion_tokens": 5,
        "cached_tokens": 4, "queue_ms": 0.0, "ttft_ms": 100.0, "tpot_ms": 10.0, "e2e_ms": 150.0,
        **changes,
    }  # fmt: skip
    return RecentRequest(**values)


def test_figures_are_counted_as_they_are_named() -> None:
    rows = [recent(ttft_ms=100.0 * n) for n in range(1, 11)]
    rows += [
        recent(cache="hit", ttft_ms=0.1),
        recent(status=500, error="engine_error", ttft_ms=None),
    ]
    rows += [recent(status=429, error="rate_limit_exceeded", ttft_ms=None, cache="bypass")]
    figures = compute_figures(rows, 10.0)
    assert figures["requests_per_s"] == 1.3
    assert figures["errors_per_s"] == 0.1
    assert figures["refused_per_s"] == 0.1
    assert (figures["ttft_p50_s"], figures["ttft_p95_s"]) == (0.5, 1.0)
    assert figures["cache_hit_ratio"] == pytest.approx(1 / 12)
    assert figures["tokens_per_s"] == 6.0
    assert find_quantile([], 0.5) is None
    assert compute_figures([], 10.0)["ttft_p50_s"] is None


async def test_top_shows_what_was_asked_just_now(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        for _ in range(3):
            assert (await gateway.ask(CHAT)).status == 200
        await gateway.ask({**CHAT, "temperature": 99})

        def run() -> dict[str, Any]:
            home = {HOME_VARIABLE: str(tmp_path)}
            result = CliRunner().invoke(
                app, ["top", "--once", "--json", "--window", "300"], env=home
            )
            assert result.exit_code == 0, result.output
            return json.loads(result.stdout)

        async def is_there() -> dict[str, Any] | None:
            found = await asyncio.to_thread(run)
            done = found["deployments"][0]["requests_per_s"] > 2.5 / 300
            return found if done and found["unrouted"]["requests_per_s"] else None

        found = await until(is_there)
        (deployment,) = found["deployments"]
        (version,) = deployment["versions"]
        (replica,) = version["replicas"]
        assert (deployment["name"], version["label"], replica["id"]) == (
            "echo",
            "echo@v1",
            "echo-0",
        )
        assert deployment["requests_per_s"] == pytest.approx(3 / found["window_s"])
        # It was refused before it was for any version.
        assert found["unrouted"]["refused_per_s"] == pytest.approx(1 / found["window_s"])
        assert version["ttft_p95_s"] > 0
        assert replica["tokens_per_s"] > 0
        assert make_view(found).renderables
        # Later, all of it is over.
        later = read_live(gateway.database, 10.0, clock=lambda: time.time() + 600)
        assert later["deployments"][0]["requests_per_s"] == 0
