"""Batches under `thrifty up`: killed in every way, run from the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.batches.talk import make_input, make_line
from tests.parts import RunningService, run_thrifty, running_service, wait_until
from tests.postgres_server import running_postgres
from tests.service.test_up import nothing_left, write_spec
from thrifty.fleet.process import ProcessId, find_ours

pytestmark = pytest.mark.service

OVER = ("completed", "failed", "expired", "cancelled")


def request(
    url: str, method: str, path: str, ensure: Callable[[], None] | None = None, **fields: Any
) -> requests.Response:
    """One request; a gateway that is just being replaced is asked again."""
    deadline_s = time.monotonic() + 60
    while True:
        if ensure is not None:
            ensure()
        try:
            reply = requests.request(method, f"{url}{path}", timeout=30, **fields)
            if reply.status_code != 503:
                return reply
        except requests.RequestException:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.1)


def create(url: str, lines: list[Any], window: str = "24h") -> dict[str, Any]:
    file = request(
        url, "POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", make_input(lines))}
    )  # fmt: skip
    assert file.status_code == 200, file.text
    body = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": window,
    }
    reply = request(url, "POST", "/v1/batches", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def read(url: str, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    reply = request(url, "GET", f"/v1/files/{file_id}/content")
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.content.splitlines()]


def wait_over(
    url: str, batch_id: str, timeout_s: float = 90.0, ensure: Callable[[], None] | None = None
) -> dict[str, Any]:
    def over() -> Any:
        batch = request(url, "GET", f"/v1/batches/{batch_id}", ensure).json()
        return batch if batch.get("status") in OVER else None

    return wait_until(over, timeout_s, "the end of the batch")


def check_whole(url: str, batch: dict[str, Any], count: int) -> None:
    """Every line once, none lost, none twice."""
    output = read(url, batch["output_file_id"])
    errors = read(url, batch["error_file_id"])
    assert batch["status"] == "completed"
    found = Counter(record["custom_id"] for record in (*output, *errors))
    assert errors == []
    assert found == Counter({str(i): 1 for i in range(count)})
    for record in output:
        text = record["response"]["body"]["choices"][0]["message"]["content"]
        assert text == f"line {record['custom_id']}"
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}


class Up:
    """`thrifty up` that is started again whenever its controller was killed."""

    def __init__(self, home: Path, spec: str, **environment: str) -> None:
        self.home = home
        self.spec = spec
        self.environment = {**os.environ, "THRIFTY_HOME": str(home), **environment}
        self.process: subprocess.Popen[str] | None = None

    def ensure(self) -> None:
        """Start it, if it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        output = (self.home / "up.out").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", "up", self.spec, "--no-measure"],
            env=self.environment, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        output.close()

    def kill(self, role: str, rng: random.Random) -> bool:
        """SIGKILL a process of this role; returns whether there was one."""
        if role == "controller":
            assert self.process is not None
            if self.process.poll() is not None:
                return False
            self.process.kill()
            self.process.wait()
            return True
        found: list[ProcessId] = [i for i, r, _ in find_ours(self.home) if r == role]
        if not found:
            return False
        try:
            os.kill(rng.choice(found).pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def stop(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        run_thrifty(self.home, "down")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def database(request: Any) -> Iterator[str | None]:
    """None for the embedded one, or a real PostgreSQL's URL."""
    if request.param == "sqlite":
        yield None
        return
    with running_postgres() as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.long
def test_sigkills_of_anything_neither_lose_nor_repeat_a_line(
    tmp_path: Path, database: str | None
) -> None:
    keys: dict[str, Any] = {"database": database} if database else {}
    spec = write_spec(
        tmp_path, replicas=2, engine={"kind": "echo", "ttft": "60ms", "slots": 4}, cache=False, **keys
    )  # fmt: skip
    url = f"http://127.0.0.1:{json.loads(Path(spec).read_text())['gateway']['port']}"
    up, rng, count = Up(tmp_path, spec), random.Random(5), 800
    killed: Counter[str] = Counter()
    try:
        up.ensure()
        wait_until(lambda: request(url, "GET", "/readyz").status_code == 200, 60)
        batch = create(url, [make_line(str(i), f"line {i}") for i in range(count)])
        for number in range(14):
            time.sleep(rng.uniform(0.2, 1.2))
            role = ("gateway", "replica", "controller")[number % 3]
            if up.kill(role, rng):
                killed[role] += 1
            up.ensure()
        # A controller whose gateway was killed while it started ends by itself, later.
        ended = wait_over(url, batch["id"], 200, up.ensure)
        check_whole(url, ended, count)
        assert min(killed[role] for role in ("gateway", "replica", "controller")) >= 2, killed
    finally:
        up.stop()
    assert nothing_left(tmp_path)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    spec = write_spec(
        tmp_path, engine={"kind": "echo", "ttft": "30ms", "slots": 4}, cache={"exact": False}
    )
    with running_service(tmp_path, spec, "--no-measure") as running:
        yield running


def write_input(folder: Path, count: int, *more: Any) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(make_input([*(make_line(str(i), f"line {i}") for i in range(count)), *more]))
    return path


def batch_command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "thrifty", "batch", "run", *arguments],
        env={**os.environ, "THRIFTY_HOME": str(home)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_batch_from_the_command_line(service: RunningService, tmp_path: Path) -> None:
    source, out = write_input(tmp_path, 40, b"{bad"), tmp_path / "out.jsonl"
    result = run_thrifty(tmp_path, "batch", "run", str(source), "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["batch"]["request_counts"] == {"total": 41, "completed": 40, "failed": 1}
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(int(r["custom_id"]) for r in records) == list(range(40))
    errors = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [e["error"]["line"] for e in errors] == [41]
    assert report["errors"] == str(tmp_path / "out.errors.jsonl")
    assert "completed" in result.stderr
    assert not list(tmp_path.glob("out.jsonl.*"))


def test_the_command_killed_goes_on_with_its_batch(service: RunningService, tmp_path: Path) -> None:
    source, out = write_input(tmp_path, 300), tmp_path / "out.jsonl"
    arguments = (str(source), "--out", str(out), "--url", service.url)
    first = batch_command(tmp_path, *arguments)
    note = tmp_path / "out.jsonl.batch"
    wait_until(note.exists, what="the note")
    first.kill()
    first.communicate()
    # The gateway goes too, and comes back.
    (gateway,) = [ident for ident, role, _ in find_ours(tmp_path) if role == "gateway"]
    os.kill(gateway.pid, signal.SIGKILL)
    batch_id = json.loads(note.read_text())["batch_id"]
    wait_until(lambda: request(service.url, "GET", "/healthz").status_code == 200)
    second = batch_command(tmp_path, *arguments, "--json")
    text, errors = second.communicate(timeout=90)
    assert second.returncode == 0, errors
    assert json.loads(text)["batch"]["id"] == batch_id
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(int(r["custom_id"]) for r in records) == list(range(300))
    assert not note.exists()
    assert len(request(service.url, "GET", "/v1/batches").json()["data"]) == 1


def test_the_command_tells_what_is_wrong(service: RunningService, tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    missing = run_thrifty(tmp_path, "batch", "run", str(tmp_path / "none"), "--out", out)
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    assert "Traceback" not in missing.stderr
    (tmp_path / "bad.jsonl").write_text("no url here\n")
    bad = run_thrifty(tmp_path, "batch", "run", str(tmp_path / "bad.jsonl"), "--out", out)
    assert "no line with a 'url'" in bad.stderr
    source = write_input(tmp_path, 2)
    away = run_thrifty(
        tmp_path, "batch", "run", str(source), "--out", out, "--url", "http://127.0.0.1:9"
    )
    assert away.returncode == 1
    assert "cannot be reached" in away.stderr
    (tmp_path / "out.jsonl.batch").write_text(
        json.dumps({"url": service.url, "batch_id": "batch_1", "input_sha256": "other"})
    )
    other = run_thrifty(tmp_path, "batch", "run", str(source), "--out", out)
    assert "another input" in other.stderr
    window = run_thrifty(
        tmp_path, "batch", "run", str(source), "--out", f"{out}2", "--window", "soon"
    )
    assert "completion_window" in window.stderr


def test_stopping_and_starting_goes_on_with_a_batch(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, engine={"kind": "echo", "ttft": "50ms", "slots": 4}, cache=False)
    count = 200
    with running_service(tmp_path, spec, "--no-measure") as service:
        batch = create(service.url, [make_line(str(i), f"line {i}") for i in range(count)])
        wait_until(
            lambda: request(service.url, "GET", f"/v1/batches/{batch['id']}").json()[
                "request_counts"]["completed"] > 20
        )  # fmt: skip
        assert service.stop() == 0
    with running_service(tmp_path, spec, "--no-measure") as service:
        check_whole(service.url, wait_over(service.url, batch["id"]), count)


def test_a_batch_does_not_slow_interactive_requests_down(tmp_path: Path) -> None:
    """The echo engine has four places; with a batch in all of them, nobody waits for one."""
    spec = write_spec(tmp_path, engine={"kind": "echo", "ttft": "1s", "slots": 4}, cache=False)
    with running_service(tmp_path, spec, "--no-measure") as service:
        batch = create(service.url, [make_line(str(i), f"line {i}") for i in range(60)])
        wait_until(lambda: request(service.url, "GET", f"/v1/batches/{batch['id']}").json()[
            "request_counts"]["completed"] > 0)  # fmt: skip
        times: list[float] = []

        def talk() -> None:
            chat = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
            for _ in range(5):
                began = time.monotonic()
                reply = requests.post(f"{service.url}/v1/chat/completions", json=chat, timeout=30)
                assert reply.status_code == 200
                times.append(time.monotonic() - began)

        threads = [threading.Thread(target=talk) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(times) == 15
        # Waiting for a line's place would add up to a second.
        assert sorted(times)[13] < 1.9, times
        counts = request(service.url, "GET", f"/v1/batches/{batch['id']}").json()["request_counts"]
        assert counts["completed"] > 0
        check_whole(service.url, wait_over(service.url, batch["id"]), 60)
