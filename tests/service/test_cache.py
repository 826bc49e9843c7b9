"""`thrifty cache` against a service that runs, with a real Redis behind it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.parts import run_thrifty, running_service, wait_until
from tests.redis_server import running_redis

pytestmark = [pytest.mark.service]


def ask(url: str, text: str) -> str:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(reply.headers["x-thrifty-cache"])


def test_purging_and_figures_by_command(tmp_path: Path) -> None:
    home = tmp_path / "home"
    spec = tmp_path / "spec.yaml"
    with running_redis() as redis:
        spec.write_text(
            "engine: echo\ngateway: {port: 0}\nprices: {input: 1, output: 2}\n"
            f"redis: {redis.url}\ncache: {{exact: {{shared_timeout: 500ms}}}}\n"
        )
        with running_service(home, str(spec), "--no-measure") as service:
            assert [ask(service.url, "hello"), ask(service.url, "hello")] == ["miss", "hit"]

            def stats() -> dict[str, Any]:
                result = run_thrifty(home, "cache", "stats", "--json")
                assert result.returncode == 0, result.stderr
                return json.loads(result.stdout)

            seen = wait_until(lambda: (s := stats())["total"].get("hit") == 1 and s)
            assert seen["total"]["hit_ratio"] == 0.5
            assert seen["total"]["saved_cost"] > 0
            assert seen["shared"]["written"] == 1
            assert len(seen["workers"]) == 1
            table = run_thrifty(home, "cache", "stats").stdout
            assert "50.0%" in table
            assert "Redis: " in table

            result = run_thrifty(home, "cache", "purge", "--deployment", "other", "--json")
            assert result.returncode == 1
            assert "other" in result.stderr
            assert ask(service.url, "hello") == "hit"
            result = run_thrifty(home, "cache", "purge", "--deployment", "echo")
            assert "forget the answers of deployment 'echo'" in result.stderr
            wait_until(lambda: stats()["total"]["entries"] == 0)
            assert ask(service.url, "hello") == "miss"
