"""Numbers of replicas that follow the load, in a service as a user runs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.parts import RunningService, run_thrifty, running_service, wait_until
from thrifty.db import open_database
from thrifty.db.demand import read_demand
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.home import Home

pytestmark = pytest.mark.service

PATIENCE_S = 120.0


def write_spec(folder: Path, **keys: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "thrifty.yaml"
    engine = {
        "kind": "echo", "ttft": "50ms", "tpot": "50ms", "slots": 2, "load": "1s",
        "reply": "one two three four five six seven eight nine ten",
    }  # fmt: skip
    spec = {
        "name": "echo", "engine": engine, "gateway": {"port": find_free_port()},
        "limits": {"wait_timeout": "2m"}, **keys,
    }  # fmt: skip
    path.write_text(json.dumps(spec))
    return str(path)


def ask(service: RunningService, text: str, **fields: Any) -> int:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "seed": 1, **fields}
    url = f"{service.url}/v1/chat/completions"
    return requests.post(url, json=body, timeout=PATIENCE_S).status_code


def burst(service: RunningService, count: int) -> list[int]:
    """The statuses of so many requests at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda index: ask(service, f"question {index}"), range(count)))


def apply_replicas(home: Path, spec: str, replicas: dict[str, Any]) -> None:
    path = Path(spec)
    path.write_text(json.dumps({**json.loads(path.read_text()), "replicas": replicas}))
    result = run_thrifty(home, "apply", spec, "--no-wait")
    assert result.returncode == 0, result.stderr


def find_version(service: RunningService) -> dict[str, Any]:
    return service.status()["deployments"][0]["versions"][0]


def read_counts(home: Path) -> list[int]:
    """The counts that the autoscaler chose, the oldest first."""
    changes = json.loads(run_thrifty(home, "history", "echo", "--json").stdout)
    rows = changes["changes"] if isinstance(changes, dict) else changes
    scaled = [row for row in reversed(rows) if row["kind"] == "autoscale"]
    assert all(row["who"] == "autoscaler" and row["why"] for row in scaled)
    return [row["versions"][0]["replicas"] for row in scaled]


def count_processes(home: Path) -> int:
    return sum(role == "replica" for _, role, _ in find_ours(home))


def test_a_burst_wakes_and_scales_and_idleness_ends_all(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, replicas={"min": 1, "max": 3})
    with running_service(tmp_path, spec, "--no-measure") as service:
        apply_replicas(tmp_path, spec, {"min": 0, "max": 3, "idle_after": "3s"})
        wait_until(lambda: count_processes(tmp_path) == 0, PATIENCE_S, "no replica")
        assert burst(service, 24) == [200] * 24
        wait_until(lambda: find_version(service)["wanted"] == 0, PATIENCE_S, "zero is wanted")
        wait_until(lambda: count_processes(tmp_path) == 0, PATIENCE_S, "no replica again")
        counts = read_counts(tmp_path)
        assert 1 < max(counts) <= 3
        assert counts[-1] == 0
        scaling = find_version(service)["scaling"]
        assert (scaling["min"], scaling["max"], scaling["count"]) == (0, 3, 0)
        metrics = requests.get(f"{service.url}/metrics", timeout=30).text
        assert 'thrifty_replicas_wanted{deployment="echo"' in metrics
        assert ask(service, "one more") == 200


@contextmanager
def asking_on(
    service: RunningService, clients: int
) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Clients that ask one question after the other; gives the list of their statuses, and what
    ends them.
    """
    statuses: list[int] = []
    done = threading.Event()

    def talk(index: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                statuses.append(ask(service, f"{index}/{number}"))
            except requests.RequestException:
                statuses.append(0)

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()

    def end() -> None:
        done.set()
        for thread in threads:
            thread.join()

    try:
        yield statuses, end
    finally:
        end()


def test_a_controller_killed_while_it_scales_leaks_and_doubles_nothing(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, replicas={"min": 1, "max": 3})
    with running_service(tmp_path, spec, "--no-measure") as service:
        with asking_on(service, 8) as (statuses, end):
            wait_until(lambda: count_processes(tmp_path) > 1, PATIENCE_S, "a second replica")
            service.process.kill()
            service.process.wait()
            with running_service(tmp_path, spec, "--no-measure") as second:
                wanted = find_version(second)["wanted"]
                assert 1 < wanted <= 3

                def is_whole() -> bool:
                    found = second.status()["deployments"][0]
                    pids = {r["pid"] for r in found["replicas"] if r["state"] == "ready"}
                    version = found["versions"][0]
                    return len(pids) == version["wanted"] == count_processes(tmp_path)

                wait_until(is_whole, PATIENCE_S, "as many processes as are wanted")
                end()
        assert len(statuses) > 8
        assert set(statuses) == {200}
    assert find_ours(tmp_path) == []


def test_the_replica_with_the_least_to_say_goes_first(tmp_path: Path) -> None:
    long = {"kind": "echo", "tpot": "200ms", "slots": 4, "reply": "word " * 200}
    spec = write_spec(tmp_path, replicas={"count": 2, "cpus": 1}, engine=long)
    with running_service(tmp_path, spec, "--no-measure") as service:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "a"}]}
        url = f"{service.url}/v1/chat/completions"

        def begin() -> requests.Response:
            return requests.post(url, json=body, stream=True, timeout=PATIENCE_S)

        streams = [begin(), begin()]
        by = {stream.headers["x-thrifty-replica"]: stream for stream in streams}
        assert set(by) == {"echo-0", "echo-1"}
        by["echo-0"].close()
        # The lower number stays, but for the work of the other one.
        wait_until(lambda: reported_work(tmp_path).keys() == {"echo-1"}, PATIENCE_S, "the report")
        apply_replicas(tmp_path, spec, {"count": 1, "cpus": 1})
        wait_until(lambda: count_processes(tmp_path) == 1, PATIENCE_S, "one replica")
        assert [one["id"] for one in service.replicas()] == ["echo-1"]
        assert next(by["echo-1"].iter_lines())
        by["echo-1"].close()


def reported_work(home: Path) -> dict[str, float]:
    """What gateways say is left to say at each replica."""
    database = open_database(Home(home).database_url, migrate=False)
    try:
        work: dict[str, float] = {}
        for row in read_demand(database):
            work |= row.figures.work
        return work
    finally:
        database.close()
