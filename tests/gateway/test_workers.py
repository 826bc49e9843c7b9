"""Several deployments with names, aliases and fallbacks, and several workers on one port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import openai
from tests.parts import RunningService, run_thrifty, running_service, wait_until
from thrifty.db import open_database
from thrifty.db.fleet import read_fleet
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.gateway.app.merge_metrics import merge_pages
from thrifty.home import Home

pytestmark = pytest.mark.service

CHAT = {"messages": [{"role": "user", "content": "one two three four"}], "max_tokens": 4}


def write_spec(folder: Path, spec: dict[str, Any]) -> str:
    path = folder / "several.yaml"
    spec.setdefault("gateway", {})["port"] = find_free_port()
    path.write_text(json.dumps(spec))
    return str(path)


def ask(service: RunningService, model: str, **fields: Any) -> requests.Response:
    body = {"model": model, **CHAT, **fields}
    return requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=30)


def gateways(home: Path) -> list[int]:
    return [ident.pid for ident, role, _ in find_ours(home) if role == "gateway"]


@contextlib.contextmanager
def kept_dead(home: Path, replica: str) -> Iterator[None]:
    """Kill a replica, and each replacement of it."""
    done, begun = threading.Event(), threading.Event()

    def kill() -> None:
        while not done.wait(0.02):
            for ident, _, name in find_ours(home):
                if name == replica:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(ident.pid, signal.SIGKILL)
                        begun.set()

    killer = threading.Thread(target=kill)
    killer.start()
    begun.wait(10)
    try:
        yield
    finally:
        done.set()
        killer.join()


def test_names_aliases_and_fallbacks(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        {
            "engine": {"kind": "echo"},
            "limits": {"wait_timeout": "2s"},
            "deployments": [
                {
                    "name": "big",
                    "aliases": ["gpt-4o"],
                    "fallback": ["middle"],
                    "engine": {"kind": "echo", "load": "1s"},
                },
                {"name": "middle", "fallback": "small", "engine": {"kind": "echo", "slots": 3}},
                {"name": "small", "replicas": 2},
            ],
        },
    )
    with running_service(tmp_path, spec, "--no-measure") as service:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
        models = {model.id: model.to_dict() for model in client.models.list()}
        assert set(models) == {"big", "gpt-4o", "middle", "small"}
        assert models["gpt-4o"]["deployment"] == "big"
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
        for name, by in (("big", "big-"), ("gpt-4o", "big-"), ("small", "small-")):
            reply = ask(service, name)
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-thrifty-replica"].startswith(by)
        assert "'gpt-4o'" in ask(service, "gpt-5").json()["error"]["message"]

        with kept_dead(tmp_path, "big-0"):
            reply = ask(service, "gpt-4o", temperature=0)
        assert reply.status_code == 200, "another deployment answers"
        assert reply.headers["x-thrifty-replica"].startswith("middle-")
        text = requests.get(f"{service.url}/metrics", timeout=10).text
        assert 'thrifty_fallbacks_total{by="middle",deployment="big"} 1.0' in text
        wait_until(
            lambda: ask(service, "big").headers.get("x-thrifty-replica", "").startswith("big-"), 30
        )
        reply = ask(service, "gpt-4o", temperature=0)
        assert reply.headers["x-thrifty-cache"] == "miss", "a fallback's answer is not kept"
        client.close()


def test_workers_share_the_port_and_a_killed_one_loses_only_its_own(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        {
            "engine": {"kind": "echo", "ttft": "20ms", "load": "1s"},
            "replicas": 2,
            "gateway": {"workers": 3},
        },
    )
    with running_service(tmp_path, spec, "--no-measure") as service:
        database = open_database(Home(tmp_path).database_url, migrate=False)
        own = [row.url for row in read_fleet(database).gateways]
        ready = [requests.get(f"{url}/readyz", timeout=5).status_code for url in own]
        assert ready == [200] * 3, "once it is said to be served, every worker knows"
        assert len(gateways(tmp_path)) == 3
        for number in range(60):
            assert ask(service, "echo", temperature=0, seed=number).status_code == 200
        page = requests.get(f"{service.url}/metrics", timeout=10).text
        counts = [
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith("thrifty_requests_total{")
        ]
        assert sum(counts) == 60, "one page for all workers"
        assert sum('worker="gateway-' in line for line in page.splitlines()) > 30
        assert page.count("# TYPE thrifty_requests_total") == 1

        victim = gateways(tmp_path)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(gateways(tmp_path)) == 3 and victim not in gateways(tmp_path), 20)
        for number in range(20):
            assert ask(service, "echo", temperature=0, seed=number).status_code == 200


def test_a_rolling_restart_loses_no_request(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        {"engine": {"kind": "echo", "tpot": "20ms"}, "replicas": 2, "gateway": {"workers": 2}},
    )
    with running_service(tmp_path, spec, "--no-measure") as service:
        before = set(gateways(tmp_path))
        failures: list[Any] = []
        answered = [0]
        done = threading.Event()

        def talk(keep_alive: bool) -> None:
            session = requests.Session()
            while not done.is_set():
                try:
                    post = session.post if keep_alive else requests.post
                    reply = post(
                        f"{service.url}/v1/chat/completions",
                        json={"model": "echo", **CHAT, "max_tokens": 20, "stream": True},
                        timeout=30,
                    )
                    assert reply.text.rstrip().endswith("[DONE]"), reply.text
                    answered[0] += 1
                except Exception as error:
                    failures.append(error)

        talkers = [threading.Thread(target=talk, args=(n % 2 == 0,)) for n in range(6)]
        for talker in talkers:
            talker.start()
        result = run_thrifty(tmp_path, "restart", "--json", timeout_s=60)
        done.set()
        for talker in talkers:
            talker.join()
        assert result.returncode == 0, result.stderr
        assert "2 gateway workers replaced" in result.stderr
        assert json.loads(result.stdout) == {"workers_replaced": 2}
        assert failures == []
        assert answered[0] > 20
        after = set(gateways(tmp_path))
        assert len(after) == 2
        assert not after & before


def test_restart_without_a_service_is_an_error(tmp_path: Path) -> None:
    result = run_thrifty(tmp_path, "restart")
    assert result.returncode == 1
    assert "thrifty up" in result.stderr


def test_pages_are_merged_by_family() -> None:
    page = b'# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} 2.0\na_total 1.0\n'
    other = b"# HELP b B.\n# TYPE b gauge\nb 5.0\n"
    merged = merge_pages({"g-0": page + other, "g-1": page, "g-2": b""}).decode()
    assert merged.splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{worker="g-0",x="1"} 2.0',
        'a_total{worker="g-0"} 1.0',
        'a_total{worker="g-1",x="1"} 2.0',
        'a_total{worker="g-1"} 1.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="g-0"} 5.0',
    ]
