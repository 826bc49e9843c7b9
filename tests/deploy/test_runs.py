"""What the manifests say really runs: a gateway and replicas as processes, wired as they say."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import requests

from tests.deploy.pods import Cluster
from tests.deploy.specs import pick, read_objects, render
from tests.parts import wait_until
from thrifty.fleet.ports import find_free_port

pytestmark = pytest.mark.service

SPEC = {
    "name": "pretend",
    "versions": [
        {"label": "a", "engine": {"kind": "echo", "reply": "from a", "slots": 4}, "weight": 1},
        {"label": "b", "engine": {"kind": "echo", "reply": "from b", "slots": 4}, "weight": 1},
    ],
    "limits": {"max_tokens": 50},
}


def test_a_gateway_and_its_replicas_run_as_the_manifests_say(tmp_path: Path) -> None:
    objects = read_objects(render("kubernetes", SPEC))
    keys = {name: secrets.token_hex(32) for name in ("admin-key", "viewer-key", "replica-key")}
    cluster = Cluster(objects, tmp_path, keys)
    names = [one["metadata"]["name"] for one in objects if one["kind"] == "Deployment"]
    replicas = [name for name in names if name != "thrifty-gateway"]
    assert len(replicas) == 2
    try:
        # All at once, as a cluster does.
        pods = {name: cluster.start(name) for name in names}
        for pod in pods.values():
            pod.wait_ready()
        url = cluster.url("thrifty-gateway")
        admin = {"Authorization": f"Bearer {keys['admin-key']}"}
        viewer = {"Authorization": f"Bearer {keys['viewer-key']}"}
        wait_until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200, 60, "ready")

        def ask(conversation: int, headers: dict[str, str], **fields: object) -> requests.Response:
            body = {
                "model": "pretend",
                "messages": [{"role": "user", "content": f"{conversation}"}],
            }
            target = f"{url}/v1/chat/completions"
            return requests.post(target, json={**body, **fields}, headers=headers, timeout=60)

        found = Counter(ask(n, admin).json()["choices"][0]["message"]["content"] for n in range(40))
        assert set(found) == {"from a", "from b"}
        assert ask(0, {}).status_code == 401
        assert ask(0, viewer).status_code == 403
        # The spec's limits hold.
        assert ask(0, admin, max_tokens=51).status_code == 400
        metrics = requests.get(f"{url}/metrics", headers=viewer, timeout=10)
        assert 'thrifty_replica_up{deployment="pretend"' in metrics.text
        # Nobody gets past the gateway without the replicas' key.
        for name in replicas:
            direct = f"{cluster.url(name)}/v1/models"
            assert requests.get(direct, timeout=10).status_code == 401
            given = {"Authorization": f"Bearer {keys['replica-key']}"}
            assert requests.get(direct, headers=given, timeout=10).status_code == 200
        # A pod that is told to go ends by itself, and the other version answers for it.
        assert pods[replicas[0]].terminate() == 0
        wait_until(
            lambda: {ask(n, admin).status_code for n in range(8)} == {200}, 60, "the other answers"
        )
        assert pods["thrifty-gateway"].terminate() == 0
    finally:
        cluster.stop()
    for pod in cluster.pods:
        for key in keys.values():
            assert key not in pod.log.read_text()


def test_the_whole_service_runs_in_a_container_as_cloud_run_gets_it(tmp_path: Path) -> None:
    """The spec in the environment, keys beside it, versions and limits as here."""
    (service,) = read_objects(render("cloudrun", SPEC))
    assert service == pick([service], "Service")
    (container,) = service["spec"]["template"]["spec"]["containers"]
    port, keys = find_free_port(), {}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for one in container["env"]:
        if "value" in one:
            environment[one["name"]] = one["value"]
        else:
            keys[one["valueFrom"]["secretKeyRef"]["name"]] = secrets.token_hex(32)
            environment[one["name"]] = keys[one["valueFrom"]["secretKeyRef"]["name"]]
    environment["THRIFTY_HOME"] = str(tmp_path / "home")
    # Only the address is another: loopback, and a free port.
    spec = environment["THRIFTY_SPEC"].replace("host: 0.0.0.0", "host: 127.0.0.1")
    environment["THRIFTY_SPEC"] = re.sub(r"port: 8080", f"port: {port}", spec)
    assert container["command"] == ["thrifty"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", *container["args"]], env=environment, cwd=tmp_path,
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                path = container["startupProbe"]["httpGet"]["path"]
                return requests.get(f"{url}{path}", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        wait_until(ready, 150, "the startup probe succeeds")
        body = {"model": "pretend", "messages": [{"role": "user", "content": "Hello"}]}
        target = f"{url}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {keys['thrifty-admin-key']}"}
        answer = requests.post(target, json=body, headers=headers, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] in ("from a", "from b")
        assert requests.post(target, json=body, timeout=60).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    for key in keys.values():
        assert key not in log.read_text()
