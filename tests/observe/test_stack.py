"""What `thrifty observe export` writes, and what is sent by OTLP, with the real programs: Debian's
Prometheus and promtool, and a collector that others wrote. `make test-observe` runs this.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.observe.programs import run_promtool, running_collector, running_prometheus
from tests.parts import run_thrifty, running_service, wait_until
from thrifty.fleet.ports import find_free_port
from thrifty.observe.burn import BURNS
from thrifty.observe.otlp.conventions import OWN

pytestmark = pytest.mark.observe

MESSAGE = {"role": "user", "content": "What is the capital of France?"}
CHAT: dict[str, Any] = {"model": "chat", "messages": [MESSAGE], "max_tokens": 8}


def export(home: Path, folder: Path) -> None:
    result = run_thrifty(home, "observe", "export", str(folder))
    assert result.returncode == 0, result.stderr


def test_promtool_accepts_the_files_and_the_page(tmp_path: Path) -> None:
    export(tmp_path, tmp_path / "out")
    checked = run_promtool("check", "config", "prometheus.yaml", folder=tmp_path / "out")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = run_promtool("check", "rules", "thrifty-rules.yaml", folder=tmp_path / "out")
    assert rules.returncode == 0, rules.stdout + rules.stderr
    assert "SUCCESS" in rules.stdout


def make_series(name: str, values: str) -> dict[str, str]:
    labels = 'deployment="d",version="v",replica="r"'
    return {"series": f"{name}{{{labels}}}", "values": values}


def test_rules_alert_at_their_burn_rates_and_on_enough_traffic(tmp_path: Path) -> None:
    """By promtool's own clock: hours of requests, of which a share fails."""
    export(tmp_path, tmp_path)
    minutes = 7 * 60

    def failing(per_minute: float, of: float) -> list[dict[str, str]]:
        return [
            make_series("thrifty_judged_requests_total", f"0+{of}x{minutes}"),
            make_series("thrifty_failed_requests_total", f"0+{per_minute}x{minutes}"),
            make_series("thrifty_slow_requests_total", f"0+0x{minutes}"),
        ]

    cases = [
        # Of a budget of 1%: 20 times, 8 times, half of it; and 20 times of a request a minute.
        ("fast", failing(20, 100), {("page", "1h"), ("page", "6h"), ("ticket", "1d"), ("ticket", "3d")}),
        ("slower", failing(8, 100), {("page", "6h"), ("ticket", "1d"), ("ticket", "3d")}),
        ("within", failing(0.5, 100), set()),
        ("little traffic", failing(0.02, 0.1), set()),
    ]  # fmt: skip
    tests = []
    for name, series, expected in cases:
        labels = [
            {"severity": burn.severity, "window": window}
            for burn in BURNS
            for window in [f"{burn.long_s // 3600}h" if burn.long_s < 86400 else f"{burn.long_s // 86400}d"]
            if (burn.severity, window) in expected
        ]  # fmt: skip
        tests.append(
            {
                "name": name, "interval": "1m", "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": 'count by (severity, window) (ALERTS{alertname="ThriftyErrors"})',
                        "eval_time": "7h",
                        "exp_samples": [
                            {
                                "labels": write_labels(one),
                                "value": 1,
                            }
                            for one in labels
                        ],
                    }
                ],
            }
        )  # fmt: skip
    path = tmp_path / "tests.yaml"
    path.write_text(
        yaml.safe_dump(
            {"rule_files": ["thrifty-rules.yaml"], "evaluation_interval": "1m", "tests": tests}
        )
    )
    result = run_promtool("test", "rules", "tests.yaml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def write_labels(labels: dict[str, str]) -> str:
    pairs = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def write_spec(folder: Path, **keys: Any) -> str:
    engine = {"kind": "echo", "ttft": "5ms", "tpot": "1ms"}
    spec = {
        "name": "chat", "engine": engine, "slo": {"ttft_p95": "2s", "tpot_p95": "1s"},
        "versions": [{"label": "a", "weight": 3}, {"label": "b", "weight": 1}],
        "gateway": {"port": find_free_port()}, **keys,
    }  # fmt: skip
    path = folder / "thrifty.yaml"
    path.write_text(json.dumps(spec))
    return str(path)


class Traffic:
    """Requests of every kind that the dashboard shows."""

    def __init__(self, home: Path, url: str) -> None:
        self._url = url
        self._keys = {}
        for name, limits in (("red", ()), ("blue", ("--rpm", "1"))):
            made = run_thrifty(home, "keys", "create", "--name", name, *limits)
            assert made.returncode == 0, made.stderr
            self._keys[name] = made.stdout.strip()
        self._count = 0

    def send(self) -> None:
        """One of each."""
        self._count += 1
        message = {**MESSAGE, "content": f"Question {self._count}?"}
        self._ask("red", {**CHAT, "messages": [message], "stream": True, "temperature": 0.9})
        self._ask("red", {**CHAT, "temperature": 0})
        self._ask("blue", CHAT)
        self._ask("red", {**CHAT, "temperature": 99})

    def _ask(self, key: str, body: dict[str, Any]) -> None:
        headers = {"authorization": f"Bearer {self._keys[key]}"}
        requests.post(
            f"{self._url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ).close()


def list_queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Every panel's queries as Prometheus gets them, with the panels' titles."""
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m")
            found.append((panel["title"], re.sub(r"\$(deployment|version)", ".*", expr)))
    return found


@pytest.mark.timeout(400)
def test_every_panel_has_data_in_a_real_prometheus(tmp_path: Path) -> None:
    home = tmp_path / "home"
    viewer = {"SCRAPE_KEY": "thrifty-scrape-key-of-32-characters-0123"}
    # A collector that nobody runs: traces are dropped, and a panel shows it.
    otlp = {"endpoint": f"http://127.0.0.1:{find_free_port()}", "sample": 1.0}
    spec = write_spec(tmp_path, observe={"otlp": otlp})
    arguments = [spec, "--no-measure", "--key", "viewer=SCRAPE_KEY"]
    with running_service(home, *arguments, **viewer) as service:
        export(home, tmp_path / "out")
        config = yaml.safe_load((tmp_path / "out" / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        job = config["scrape_configs"][0]
        assert job["static_configs"] == [{"targets": [service.url.removeprefix("http://")]}]
        job["authorization"] = {"credentials": viewer["SCRAPE_KEY"]}
        path = tmp_path / "out" / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        dashboard = json.loads((tmp_path / "out" / "grafana-dashboard.json").read_text())
        queries = list_queries(dashboard)
        assert len(queries) > 30
        traffic = Traffic(home, service.url)
        with running_prometheus(path, tmp_path / "tsdb") as prometheus:
            left = dict.fromkeys(queries)

            def all_have_data() -> bool:
                traffic.send()
                for title, expr in list(left):
                    samples = prometheus.query(expr)
                    # A version that nobody asks for has no quantiles.
                    if any(math.isfinite(float(one["value"][1])) for one in samples):
                        del left[title, expr]
                return not left

            try:
                wait_until(all_have_data, 150, "data for every panel")
            except AssertionError:
                pytest.fail(f"panels without data: {list(left)}")
            metadata = requests.get(
                f"{service.url}/metrics", timeout=30,
                headers={"authorization": f"Bearer {viewer['SCRAPE_KEY']}"},
            ).text  # fmt: skip
            linted = run_promtool("check", "metrics", stdin=metadata)
            assert not linted.stdout + linted.stderr, linted.stdout + linted.stderr
            rules = prometheus.ask("rules")["groups"]
            wrong = [
                rule["lastError"] for group in rules for rule in group["rules"]
                if rule["health"] not in ("ok", "unknown")
            ]  # fmt: skip
            assert not wrong
            assert prometheus.query("thrifty:errors:ratio5m")
        by_version = {tuple(sorted(s["metric"].items())) for s in prometheus_samples(service)}
        assert {"a", "b"} <= {dict(one).get("version") for one in by_version}


def prometheus_samples(service: Any) -> list[Any]:
    """The samples of one counter on the page, in Prometheus's form."""
    page = requests.get(
        f"{service.url}/metrics", timeout=30,
        headers={"authorization": "Bearer thrifty-scrape-key-of-32-characters-0123"},
    ).text  # fmt: skip
    lines = re.findall(r"^thrifty_judged_requests_total\{(.*)\} ", page, re.MULTILINE)
    return [{"metric": dict(re.findall(r'(\w+)="([^"]*)"', line))} for line in lines]


@pytest.mark.timeout(300)
def test_a_real_collector_gets_traces_and_metrics(tmp_path: Path) -> None:
    with running_collector(tmp_path) as (endpoint, output):
        otlp = {"endpoint": endpoint, "sample": 1.0, "interval": "1s"}
        spec = write_spec(tmp_path, observe={"otlp": otlp})
        with running_service(tmp_path / "home", spec, "--no-measure") as service:
            answer = requests.post(
                f"{service.url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=60
            )
            assert answer.status_code == 200
            named = answer.headers["x-thrifty-response-id"]
            wanted = (
                named, "POST /v1/chat/completions", "chat chat", "gen_ai.usage.output_tokens",
                "gen_ai.server.time_to_first_token", f"{OWN}good_requests",
            )  # fmt: skip
            wait_until(
                lambda: all(one in output.read_text() for one in wanted), 60,
                f"all of {wanted} in what the collector got",
            )  # fmt: skip
        assert MESSAGE["content"] not in output.read_text()
