"""`thrifty up` as a user runs it, with the echo engine: starting, stopping, surviving."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.parts import RunningService, run_thrifty, running_service, wait_until
from thrifty.db import open_database
from thrifty.db.fleet import GatewayRow, ReplicaRow, read_fleet
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.home import Home

pytestmark = pytest.mark.service

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}


def write_spec(folder: Path, **keys: Any) -> str:
    """A spec for the echo engine on a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "thrifty.yaml"
    spec = {"engine": "echo", "gateway": {"port": find_free_port()}, **keys}
    path.write_text(json.dumps(spec))
    return str(path)


def ask(service: RunningService, **fields: Any) -> requests.Response:
    return requests.post(f"{service.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=60)


def read_fleet_of(home: Path) -> tuple[list[ReplicaRow], list[GatewayRow]]:
    """The rows of what runs in a home."""
    database = open_database(Home(home).database_url, migrate=False)
    try:
        fleet = read_fleet(database)
        return fleet.replicas, fleet.gateways
    finally:
        database.close()


def nothing_left(home: Path) -> bool:
    return not find_ours(home)


def test_up_serves_tells_and_leaves_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path)) as service:
        text = service.output.read_text()
        assert "Q: What is the capital of France?\nA: What is the capital of France?" in text
        for word in ("load time", "first token", "1 stream", "8 streams", "memory",
                     "per million tokens at 0.1 an hour", "curl http://"):  # fmt: skip
            wait_until(lambda word=word: word in service.output.read_text(), what=word)
        status = service.status()
        (deployment,) = status["deployments"]
        assert (deployment["name"], deployment["engine"]) == ("echo", "echo")
        (replica,) = deployment["replicas"]
        assert set(replica) >= {"id", "url", "state", "pid", "memory_bytes"}
        assert replica["state"] == "ready"
        assert requests.get(f"{replica['url']}/health", timeout=5).status_code == 200
        wait_until(lambda: service.replicas()[0]["memory_bytes"] > 10_000_000)
        assert status["gateway"]["url"] == service.url
        assert ask(service).json()["choices"][0]["message"]["content"] == "Hello there"
        assert service.stop() == 0
        assert "nothing is left running" in service.output.read_text()
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_what_runs(tmp_path: Path, number: int) -> None:
    spec = write_spec(tmp_path, engine={"kind": "echo", "tpot": "50ms"})
    with running_service(tmp_path, spec, "--no-measure") as service:
        results: list[Any] = []

        def talk() -> None:
            with requests.post(
                f"{service.url}/v1/chat/completions",
                json={**CHAT, "stream": True},
                stream=True,
                timeout=60,
            ) as reply:
                results.append(b"".join(reply.iter_content(None)))

        thread = threading.Thread(target=talk)
        thread.start()
        time.sleep(0.3)
        assert service.stop(number) == 0
        thread.join()
        assert results[0].endswith(b"data: [DONE]\n\n")
    assert nothing_left(tmp_path)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, engine={"kind": "echo", "tpot": "60s"})
    with running_service(tmp_path, spec, "--no-measure") as service:

        def talk() -> None:
            with pytest.raises(requests.RequestException):
                ask(service)

        thread = threading.Thread(target=talk)
        thread.start()
        time.sleep(0.5)
        service.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        # The generation would go on for many minutes.
        assert service.stop() == 0
        thread.join()
    assert nothing_left(tmp_path)


def test_stopping_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, engine={"kind": "echo", "load": "60s"})
    process = subprocess.Popen(
        [sys.executable, "-m", "thrifty", "up", spec],
        env={**os.environ, "THRIFTY_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = {"gateway", "replica"}
    wait_until(
        lambda: started <= {role for _, role, _ in find_ours(tmp_path)}, what="gateway and replica"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert nothing_left(tmp_path)


def test_down_stops_it_from_elsewhere(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path), "--no-measure") as service:
        result = run_thrifty(tmp_path, "down")
        assert result.returncode == 0
        assert "nothing is left running" in result.stderr
        assert service.process.wait(10) == 0
        assert "Nothing runs here" in run_thrifty(tmp_path, "down").stderr
    assert nothing_left(tmp_path)


def test_a_second_one_in_the_same_home_is_refused(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path), "--no-measure"):
        result = run_thrifty(tmp_path, "up", write_spec(tmp_path))
        assert result.returncode == 1
        assert "runs already" in result.stderr
        assert "thrifty down" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_port_in_use_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = run_thrifty(tmp_path, "up", "--engine", "echo", "--port", str(port))
        assert result.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
        assert f"pid {os.getpid()}" in result.stderr
        assert "--port" in result.stderr
    assert nothing_left(tmp_path)


def test_beyond_loopback_it_wants_a_key(tmp_path: Path) -> None:
    port = str(find_free_port())
    result = run_thrifty(tmp_path, "up", "--engine", "echo", "--host", "0.0.0.0", "--port", port)
    assert result.returncode == 1
    assert "refusing to listen on 0.0.0.0" in result.stderr
    assert "thrifty keys create" in result.stderr
    key = run_thrifty(tmp_path, "keys", "create", "--name", "ann").stdout.strip().splitlines()[-1]
    with running_service(
        tmp_path, "--engine", "echo", "--host", "0.0.0.0", "--port", port
    ) as service:
        assert ask(service).status_code == 401
        text = service.output.read_text()
        assert "Not measured: this service has API keys" in text
        header = '-H "Authorization: Bearer $THRIFTY_KEY"'
        wait_until(lambda: header in service.output.read_text(), what="the header")
        headers = {"Authorization": f"Bearer {key}"}
        reply = requests.post(
            f"{service.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=10
        )
        assert reply.status_code == 200


def test_told_so_it_listens_without_a_key(tmp_path: Path) -> None:
    arguments = ("--engine", "echo", "--host", "0.0.0.0", "--port", str(find_free_port()))
    with running_service(tmp_path, *arguments, "--allow-no-keys", "--no-measure") as service:
        assert ask(service).status_code == 200


def test_a_bad_spec_is_told_whole_and_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("engine: opnvino\nrouting: best\nlimits: {max_body: 5XB}\n")
    result = run_thrifty(tmp_path, "up", str(path))
    assert result.returncode == 2
    assert "line 2, routing: 'best' is not a choice" in result.stderr
    assert "line 3, limits.max_body" in result.stderr
    path.write_text("engine: opnvino\n")
    result = run_thrifty(tmp_path, "up", str(path))
    assert "did you mean 'openvino'?" in result.stderr
    path.write_text("engine: {kind: echo, tfft: 5ms}\n")
    result = run_thrifty(tmp_path, "up", str(path))
    assert (
        "line 1, engine.tfft: is not an option of the engine 'echo'; did you mean 'ttft'?"
        in result.stderr
    )


def test_a_replica_killed_under_load_costs_only_its_own_streams(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path, replicas=3, engine={"kind": "echo", "ttft": "20ms", "tpot": "5ms"},
        cache={"exact": False},
    )  # fmt: skip
    with running_service(tmp_path, spec, "--no-measure") as service:
        outcomes: list[str] = []
        stop = time.monotonic() + 6
        lock = threading.Lock()

        def talk(stream: bool) -> None:
            with requests.Session() as session:
                while time.monotonic() < stop:
                    body = {**CHAT, "stream": stream, "ignore_eos": True, "max_tokens": 30}
                    reply = session.post(
                        f"{service.url}/v1/chat/completions", json=body, timeout=30
                    )
                    if reply.status_code != 200:
                        outcome = f"status {reply.status_code}: {reply.text}"
                    elif not stream:
                        outcome = (
                            "whole" if reply.json()["usage"]["completion_tokens"] == 30 else "short"
                        )
                    elif reply.content.endswith(b"data: [DONE]\n\n"):
                        outcome = "streamed"
                    else:
                        assert b'"code":"replica_lost"' in reply.content, reply.content[-300:]
                        outcome = "told"
                    with lock:
                        outcomes.append(outcome)

        threads = [threading.Thread(target=talk, args=(index % 2 == 0,)) for index in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        victim = service.replicas()[1]
        os.kill(victim["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join()
        counts = {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
        assert set(counts) <= {"whole", "streamed", "told"}, counts
        assert counts["whole"] > 50
        assert counts["streamed"] > 50
        # Six streams ran on three replicas, so at most six could be on the dead one.
        assert counts.get("told", 0) <= 6
        after = wait_until(lambda: [r for r in service.replicas() if r["state"] == "ready" and
                                    r["id"] == victim["id"]], what="the restart")  # fmt: skip
        assert after[0]["pid"] != victim["pid"]
        assert after[0]["restarts"] == 1


def test_the_only_replica_killed_loses_no_request_that_was_not_streamed(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, engine={"kind": "echo", "ttft": "300ms"})
    with running_service(tmp_path, spec, "--no-measure") as service:
        results: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: results.append(ask(service))) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        os.kill(service.replicas()[0]["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in results] == [200] * 8


def test_a_killed_gateway_comes_back_on_its_port(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path), "--no-measure") as service:
        (gateway,) = [ident for ident, role, _ in find_ours(tmp_path) if role == "gateway"]
        os.kill(gateway.pid, signal.SIGKILL)

        def back() -> bool:
            try:
                return ask(service).status_code == 200
            except requests.RequestException:
                return False

        wait_until(back, what="the gateway")


def test_a_killed_controller_stops_no_request_and_the_next_one_adopts(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, replicas=2)
    with running_service(tmp_path, spec, "--no-measure") as service:
        before = {replica["id"]: replica["pid"] for replica in service.replicas()}
        service.process.kill()
        service.process.wait()
        for _ in range(20):
            assert ask(service).status_code == 200
        result = run_thrifty(tmp_path, "status")
        assert "controller does not run" in result.stderr
        failures: list[Any] = []
        done = threading.Event()

        def talk() -> None:
            while not done.is_set():
                try:
                    # A new connection each time: the old gateway is replaced under them.
                    reply = ask(service)
                    if reply.status_code != 200:
                        failures.append(reply.text)
                except requests.RequestException as error:
                    failures.append(error)

        talker = threading.Thread(target=talk)
        talker.start()
        with running_service(tmp_path, spec, "--no-measure") as second:
            assert {replica["id"]: replica["pid"] for replica in second.replicas()} == before
            assert second.url == service.url
            time.sleep(0.5)
            done.set()
            talker.join()
            assert failures == []
    assert nothing_left(tmp_path)


def test_down_cleans_up_after_a_killed_controller(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path, replicas=2), "--no-measure") as service:
        service.process.kill()
        service.process.wait()
        assert len(find_ours(tmp_path)) == 4
        status = run_thrifty(tmp_path, "status")
        assert f"gateway  {service.url} (running)" in status.stdout
        assert "'thrifty down' stops what is left" in status.stderr
        result = run_thrifty(tmp_path, "down")
        assert "4 processes of a dead controller ended" in result.stderr
        assert nothing_left(tmp_path)
        status = run_thrifty(tmp_path, "status")
        assert status.stdout.startswith("Nothing runs. Deployed last: echo. To start a spec:")
        assert status.stderr == ""
        assert service.status() == {
            "deployments": [],
            "gateway": {"url": None, "request_log": {}},
            "controller": {"pid": None},
        }
        assert read_fleet_of(tmp_path) == ([], [])


def test_a_deleted_database_is_written_anew_with_its_keys(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path), "--no-measure") as service:
        key = (
            run_thrifty(tmp_path, "keys", "create", "--name", "ann").stdout.strip().splitlines()[-1]
        )
        headers = {"Authorization": f"Bearer {key}"}

        def status(authorized: bool) -> int:
            return requests.post(
                f"{service.url}/v1/chat/completions", json=CHAT, timeout=10,
                headers=headers if authorized else None,
            ).status_code  # fmt: skip

        wait_until(lambda: status(False) == 401, what="the key to count")
        for name in ("thrifty.db", "thrifty.db-wal", "thrifty.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        for _ in range(30):
            assert status(True) == 200
            assert status(False) == 401
            time.sleep(0.02)
        wait_until((tmp_path / "thrifty.db").exists, what="the database")
        listed = wait_until(
            lambda: json.loads(run_thrifty(tmp_path, "keys", "list", "--json").stdout or "{}").get(
                "keys"
            )
        )
        assert [entry["name"] for entry in listed] == ["ann"]
        assert status(True) == 200
        assert status(False) == 401
        wait_until(lambda: count_requests(tmp_path) > 0, what="the log to go on")


def count_requests(home: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{home / 'thrifty.db'}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


def test_a_locked_database_stops_no_request(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path), "--no-measure") as service:
        locker = sqlite3.connect(tmp_path / "thrifty.db", isolation_level=None, timeout=20)
        locker.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        while time.monotonic() - began < 7:
            assert ask(service).status_code == 200
        locker.execute("ROLLBACK")
        locker.close()
        wait_until(lambda: count_requests(tmp_path) > 0, what="the rows")
        assert service.replicas()[0]["state"] == "ready"


def test_a_gateway_in_front_of_servers_it_does_not_own(tmp_path: Path) -> None:
    with running_service(
        tmp_path / "a", write_spec(tmp_path / "a", name="smol"), "--no-measure"
    ) as inner:
        spec = tmp_path / "b.yaml"
        urls = [f"{inner.url}/v1"]
        spec.write_text(json.dumps({
            "model": "smol", "engine": {"kind": "remote", "urls": urls},
            "gateway": {"port": find_free_port()},
        }))  # fmt: skip
        with running_service(tmp_path / "b", str(spec), "--no-measure") as outer:
            reply = ask(outer, model="smol", stream=True)
            assert reply.headers["x-thrifty-replica"] == "smol-0"
            assert reply.content.endswith(b"data: [DONE]\n\n")
            assert outer.replicas()[0]["url"] == inner.url
            assert outer.replicas()[0]["pid"] is None
        assert ask(inner, model="smol").status_code == 200


def test_a_base_url_without_a_list_of_models_is_told(tmp_path: Path) -> None:
    """A 404 of `/models` says that the server lives, and no more."""
    with running_service(
        tmp_path / "a", write_spec(tmp_path / "a", name="org/smol:1"), "--no-measure"
    ) as inner:
        assert inner.replicas()[0]["id"] == "org/smol:1-0"
        assert (inner.home / "logs" / "org%2Fsmol%3A1-0.log").exists()
        spec = tmp_path / "b.yaml"
        spec.write_text(json.dumps({
            "name": "far", "engine": {"kind": "remote", "urls": [f"{inner.url}/v9"]},
            "gateway": {"port": find_free_port()},
        }))  # fmt: skip
        with running_service(tmp_path / "b", str(spec), "--no-measure") as outer:
            remark = f"{inner.url}/v9/models answers 404, no list of models"
            wait_until(lambda: remark in outer.output.read_text(), what="the remark")
            (replica,) = outer.replicas()
            assert (replica["state"], remark in replica["message"]) == ("ready", True)


def test_two_homes_do_not_know_each_other(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "a", write_spec(tmp_path / "a"), "--no-measure") as one,
        running_service(tmp_path / "b", write_spec(tmp_path / "b"), "--no-measure") as two,
    ):
        assert one.url != two.url
        run_thrifty(tmp_path / "b", "down")
        assert two.process.wait(10) == 0
        assert ask(one).status_code == 200


def test_from_python_it_is_a_context_manager(tmp_path: Path) -> None:
    code = f"""
import json, requests, thrifty
from pathlib import Path
with thrifty.Service(home=Path({str(tmp_path)!r}), engine__kind="echo", gateway__port={find_free_port()}) as service:
    body = {{"model": service.model, "messages": [{{"role": "user", "content": "Hi"}}]}}
    reply = requests.post(service.url + "/v1/chat/completions", json=body, timeout=20)
    print(reply.json()["choices"][0]["message"]["content"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip() == "Hi", result.stderr
    assert nothing_left(tmp_path)


def test_ctrl_c_while_it_starts_from_python_leaves_nothing(tmp_path: Path) -> None:
    # Tests that run in the background may have inherited that the signal is ignored.
    code = f"""
import signal, thrifty
from pathlib import Path
from thrifty.fleet.process import find_ours
signal.signal(signal.SIGINT, signal.default_int_handler)
home = Path({str(tmp_path)!r})
try:
    with thrifty.Service(home=home, engine__kind="echo", engine__load="600s",
                         gateway__port={find_free_port()}) as service:
        print("ready")
except KeyboardInterrupt:
    print("left:", len(find_ours(home)))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: any(role == "replica" for _, role, _ in find_ours(tmp_path)), 120)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert out == "left: 0\n", told
    assert process.returncode == 0


def test_nothing_of_ours_listens_beyond_loopback(tmp_path: Path) -> None:
    with running_service(tmp_path, write_spec(tmp_path, replicas=2), "--no-measure"):
        for ident, _, _ in find_ours(tmp_path):
            for process in [
                psutil.Process(ident.pid),
                *psutil.Process(ident.pid).children(recursive=True),
            ]:
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        assert connection.laddr.ip == "127.0.0.1"
