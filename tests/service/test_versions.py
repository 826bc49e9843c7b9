"""A service that changes while it is used: no request fails, and each is answered by who it says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

import thrifty
from tests.parts import RunningService, run_thrifty, running_service, wait_until
from thrifty.errors import ControlError, FleetError, SpecError
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours

pytestmark = pytest.mark.service

CLIENTS = 3


def write_spec(path: Path, port: int, **keys: Any) -> str:
    spec = {"name": "chat", "engine": {"kind": "echo", "ttft": "5ms"}, **keys}
    gateway = {"port": port, **spec.pop("gateway", {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**spec, "gateway": gateway}))
    return str(path)


def version(label: str, weight: float = 1, **keys: Any) -> dict[str, Any]:
    """A version that says in each answer which one it is."""
    engine = {"kind": "echo", "ttft": "5ms", "reply": f"from {label}"}
    return {"label": label, "weight": weight, "engine": engine, **keys}


class Load:
    """Clients that go on asking, and what they got."""

    def __init__(self, url: str) -> None:
        self.answered: Counter[str] = Counter()
        self.faults: list[str] = []
        self._url = url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        count = 0
        while not self._stopping.is_set():
            count += 1
            # A conversation of its own each time.
            message = {"role": "user", "content": f"question {count} of client {client}"}
            body = {"model": "chat", "messages": [message], "stream": count % 3 == 0}
            try:
                reply = requests.post(f"{self._url}/v1/chat/completions", json=body, timeout=60)
            except requests.RequestException as error:
                self.faults.append(repr(error))
                continue
            label = reply.headers.get("x-thrifty-version", "")
            if reply.status_code != 200:
                self.faults.append(f"{reply.status_code}: {reply.text}")
            elif f"from {label}" not in read_text(reply):
                self.faults.append(f"{label} is said to have answered {reply.text!r}")
            elif reply.text.startswith("data:") and not reply.text.endswith("[DONE]\n\n"):
                self.faults.append(f"the stream ended early: {reply.text!r}")
            self.answered[label] += 1


def read_text(reply: requests.Response) -> str:
    """The answer's text, whether it came at once or as a stream."""
    if not reply.text.startswith("data:"):
        return str(reply.json()["choices"][0]["message"]["content"])
    events = [line[6:] for line in reply.text.split("\n") if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@contextmanager
def under_load(service: RunningService) -> Iterator[Load]:
    load = Load(service.url)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def act(service: RunningService, *arguments: str) -> Any:
    """A command that prints JSON."""
    result = run_thrifty(service.home, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def labels(service: RunningService) -> dict[str, tuple[float, int]]:
    """The weight and the number of ready replicas of each version."""
    (shown, *_) = thrifty.status(home=service.home)
    return {one["label"]: (one["weight"], one["ready"]) for one in shown["versions"]}


@pytest.mark.timeout(400)
def test_a_service_changes_under_load_and_no_request_fails(tmp_path: Path) -> None:
    home, spec, port = tmp_path / "home", tmp_path / "spec.yaml", find_free_port()
    write_spec(spec, port, versions=[version("a")])
    with running_service(home, str(spec), "--no-measure") as service, under_load(service) as load:
        wait_until(lambda: load.answered["a"] > 5)

        # A second version.
        write_spec(spec, port, versions=[version("a", 50), version("b", 50)])
        assert act(service, "apply", str(spec))["changed"] == ["chat"]
        assert labels(service) == {"a": (50, 1), "b": (50, 1)}
        wait_until(lambda: load.answered["b"] > 5)

        # Traffic: what is not named keeps its weight, and answers follow.
        report = act(service, "traffic", "chat", "a=0", "--why", "a is slow")
        assert [(v["label"], v["weight"]) for v in report["versions"]] == [("a", 0), ("b", 50)]
        wait_until(lambda: load.answered["b"] - load.answered["a"] > 20)

        # The same spec again changes nothing; more replicas do not touch the weights.
        again = thrifty.apply(spec, home=home)
        assert again["changed"] == []
        (held,) = again["held"]
        assert (held["version"], held["field"], held["current"]) == ("a", "weight", 0)
        assert "a is slow" in held["by"]

        # Back, and forth again.
        act(service, "rollback", "chat")
        assert labels(service)["a"] == (50, 1)
        thrifty.rollback("chat", home=home)
        assert labels(service)["a"] == (0, 1)

        # More replicas do not touch the weights; a reset does.
        write_spec(spec, port, versions=[version("a", 50), version("b", 50, replicas=3)])
        thrifty.apply(spec, home=home)
        assert labels(service) == {"a": (0, 1), "b": (50, 3)}
        thrifty.apply(spec, home=home, reset=True)
        assert labels(service) == {"a": (50, 1), "b": (50, 3)}

        # Other options under the same label, fewer replicas, a deployment and a worker more.
        b = version("b", 50)
        b["engine"] = {**b["engine"], "slots": 7, "context": 4096}
        chat = {"name": "chat", "versions": [version("a", 50), b]}
        deployments = [chat, {"name": "other", "engine": "echo"}]
        gateway = {"port": port, "workers": 2}
        spec.write_text(json.dumps({"deployments": deployments, "gateway": gateway}))
        thrifty.apply(spec, home=home)
        assert [one["name"] for one in thrifty.status(home=home)] == ["chat", "other"]
        assert labels(service) == {"a": (50, 1), "b": (50, 1)}
        wait_until(lambda: count_gateways(home) == 2)

        # A version, a deployment and a worker less.
        write_spec(spec, port, versions=[b])
        thrifty.apply(spec, home=home)
        assert labels(service) == {"b": (50, 1)}
        assert [one["name"] for one in service.status()["deployments"]] == ["chat"]
        wait_until(lambda: count_gateways(home) == 1)
        before = load.answered["b"]
        wait_until(lambda: load.answered["b"] > before + 20)
        changes = act(service, "history", "chat")["changes"]
        assert [change["kind"] for change in changes][::-1] == [
            "apply", "apply", "traffic", "rollback", "rollback", "apply", "apply", "apply", "apply",
        ]  # fmt: skip
    assert load.faults == []
    assert sum(load.answered.values()) > 100
    assert not find_ours(home)


def count_gateways(home: Path) -> int:
    return sum(role == "gateway" for _, role, _ in find_ours(home))


def test_a_change_that_does_not_start_is_told_and_taken_back(tmp_path: Path) -> None:
    home, spec, port = tmp_path / "home", tmp_path / "spec.yaml", find_free_port()
    write_spec(spec, port, versions=[version("a")])
    with running_service(home, str(spec), "--no-measure") as service, under_load(service) as load:
        moved = write_spec(tmp_path / "moved.yaml", port + 1, versions=[version("a")])
        result = run_thrifty(home, "apply", moved)
        assert result.returncode == 2
        assert "gateway.port: cannot change while the service runs" in result.stderr
        assert "thrifty down" in result.stderr
        result = run_thrifty(home, "up", moved)
        assert result.returncode == 1
        assert "runs already" in result.stderr
        assert "thrifty apply SPEC" in result.stderr
        act(service, "apply", str(spec))
        wait_until(lambda: load.answered["a"] > 20)
    assert load.faults == []


def test_a_rollback_says_what_it_does_and_apply_what_stays_out(tmp_path: Path) -> None:
    home, spec, port = tmp_path / "home", tmp_path / "spec.yaml", find_free_port()
    other = write_spec(tmp_path / "other.yaml", port, name="other", versions=[version("c")])
    write_spec(spec, port, versions=[version("a")])
    with running_service(home, str(spec), "--no-measure") as service:
        write_spec(spec, port, versions=[version("a", 90), version("b", 10)])
        act(service, "apply", str(spec))
        same = run_thrifty(home, "traffic", "chat", "a=90", "b=10", "--why", "as it was")
        assert "nothing was recorded" in same.stderr
        dry = run_thrifty(home, "rollback", "chat", "--dry-run")
        assert "(apply, " in dry.stderr
        assert "chat: version b goes" in dry.stderr
        assert dry.stdout == ""
        planned = json.loads(run_thrifty(home, "rollback", "chat", "--dry-run", "--json").stdout)
        assert planned["deployment"] == "chat"
        assert "(apply, " in planned["takes_back"]
        assert {key: [(one["label"], one["weight"]) for one in planned[key]]
                for key in ("before", "after")} == {
            "before": [("a", 90), ("b", 10)], "after": [("a", 1)]
        }  # fmt: skip
        assert labels(service) == {"a": (90, 1), "b": (10, 1)}

        # Away, back, and away again by a rollback, on demand only.
        act(service, "apply", str(other))
        act(service, "apply", str(spec))
        refused = run_thrifty(home, "rollback", "chat")
        assert refused.returncode == 1
        assert "thrifty rollback chat --remove" in refused.stderr
        assert thrifty.status(home=home)[0]["name"] == "chat"
        with pytest.raises(ControlError, match="would remove it"):
            thrifty.rollback("chat", home=home)
        assert run_thrifty(home, "rollback", "chat", "--remove").returncode == 0
        out = run_thrifty(home, "apply", str(spec))
        assert out.returncode == 1
        assert "chat stays out" in out.stderr
        assert "(thrifty rollback)" in out.stderr
        assert f"thrifty apply {spec} --reset" in out.stderr
        assert "Everything runs" not in out.stdout
        ready = requests.get(f"{service.url}/readyz", timeout=60)
        assert "no deployment is served" in ready.json()["reason"]
        assert "Everything runs" in run_thrifty(home, "apply", str(spec), "--reset").stdout
        assert labels(service) == {"a": (90, 1), "b": (10, 1)}


def test_the_management_api_changes_the_service(tmp_path: Path) -> None:
    home, spec, port = tmp_path / "home", tmp_path / "spec.yaml", find_free_port()
    write_spec(spec, port, versions=[version("a"), version("b")])
    with running_service(home, str(spec), "--no-measure") as service, under_load(service) as load:
        api = f"{service.url}/api/v1"
        traffic = f"{api}/deployments/chat/traffic"
        reply = requests.put(traffic, json={"weights": {"a": 0}, "why": "a trial"}, timeout=60)
        assert (reply.status_code, reply.json()["weights"]) == (200, {"a": 0, "b": 1}), reply.text
        wait_until(lambda: load.answered["b"] - load.answered["a"] > 20)
        wanted = json.loads(spec.read_text())
        wanted["versions"][1]["replicas"] = 2
        plan = requests.post(f"{api}/plan", json={"spec": wanted}, timeout=120).json()
        assert [step["what"] for step in plan["start"]] == ["chat/b: 1 replica of echo@v1 (echo)"]
        reply = requests.post(f"{api}/apply", json={"spec": wanted}, timeout=120)
        assert reply.json()["held"] == ["chat: weight of a"], reply.text
        wait_until(lambda: labels(service)["b"] == (1, 2), 60)
        assert requests.post(f"{api}/deployments/chat/rollback", timeout=60).status_code == 200
        wait_until(lambda: labels(service)["b"] == (1, 1), 60)
        status = requests.get(f"{api}/status", timeout=60).json()
        assert [one["label"] for one in status["deployments"][0]["versions"]] == ["a", "b"]
        assert thrifty.history("chat", home=home)[1]["who"] == "loopback (management API)"
    assert load.faults == []


def test_a_restart_keeps_what_an_operator_has_set(tmp_path: Path) -> None:
    home, spec, port = tmp_path / "home", tmp_path / "spec.yaml", find_free_port()
    write_spec(spec, port, versions=[version("a", 1), version("b", 1)])
    with running_service(home, str(spec), "--no-measure") as service:
        act(service, "traffic", "chat", "a=0", "b=3")
    with running_service(home, str(spec), "--no-measure") as service:
        assert labels(service) == {"a": (0, 1), "b": (3, 1)}
        assert "weight of a: stays 0" in service.output.read_text()


def test_the_same_from_python(tmp_path: Path) -> None:
    spec, port = tmp_path / "spec.yaml", find_free_port()
    write_spec(spec, port, versions=[version("a", 1), version("b@2", 1)])
    with pytest.raises(FleetError, match="no service runs in"):
        thrifty.apply(spec, home=tmp_path)
    with thrifty.Service(spec, home=tmp_path) as service:
        assert service.model == "chat"
        report = service.traffic("chat", {"b@2": 3}, a=0)
        assert [one["weight"] for one in report["versions"]] == [0, 3]
        assert thrifty.traffic("chat", home=tmp_path) == report
        write_spec(spec, port, versions=[version("a", 1, replicas=2), version("b@2", 1)])
        assert [item["what"] for item in service.plan(spec)["start"]] == [
            "chat/a: 1 replica of echo@v1 (echo)"
        ]
        assert len(service.apply(spec)["held"]) == 2
        (shown,) = service.status()
        assert len(shown["replicas"]) == 3
        service.rollback("chat", why="too many")
        assert thrifty.history("chat", home=tmp_path)[0]["why"] == "too many"
        with pytest.raises(SpecError, match="cannot change while the service runs"):
            service.apply(write_spec(tmp_path / "x.yaml", port + 1))
        with pytest.raises(FleetError, match="runs already"), thrifty.Service(spec, home=tmp_path):
            pass
    assert not find_ours(tmp_path)
