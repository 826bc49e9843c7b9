"""A Kubernetes control plane on loopback: etcd, the API server, the controller manager, the scheduler.

All of it is the real one (`binaries.py`), with TLS by an authority of the test's, RBAC, service
accounts and the node-lifecycle controller on. Nodes are quickly found to be lost: after 6 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trustme
import yaml

from tests.cluster.binaries import find_binaries
from thrifty.fleet.ports import find_free_port
from thrifty.kubernetes.client import ApiAway, ApiClient, ApiRefused
from thrifty.kubernetes.config import find_cluster

START_S = 300.0
FAST = ("--kube-api-qps=500", "--kube-api-burst=1000")
"""By their defaults they ask 20 and 50 times a second, and make a thousand pods in minutes."""
NODE_GRACE_S = 6
CONTROLLERS = (
    "deployment", "replicaset", "endpoint", "endpointslice", "disruption",
    "horizontalpodautoscaling", "namespace", "garbagecollector", "resourcequota", "podgc",
    "nodelifecycle", "serviceaccount", "serviceaccount-token",
)  # fmt: skip


class ControlPlane:
    """The four programs. `start` it; `stop` it in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self._programs = find_binaries()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd = find_free_port()
        self._peer = find_free_port()
        self._port = find_free_port()
        self._authority = trustme.CA()
        self._token = uuid.uuid4().hex

    async def start(self) -> None:
        """All of them; returns once the API server is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        urls = [f"http://127.0.0.1:{port}" for port in (self._etcd, self._peer)]
        self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"),
            "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
            "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
            "--initial-cluster", f"default={urls[1]}", "--unsafe-no-fsync",
        )  # fmt: skip
        self.start_server()
        client = ApiClient(find_cluster(str(self.kubeconfig)))
        await self.wait_ready(client)
        await close_client(client)
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1", f"--secure-port={find_free_port()}", "--port=0",
            "--leader-elect=false", f"--controllers={','.join(CONTROLLERS)}",
            f"--service-account-private-key-file={self.folder}/account.key",
            f"--node-monitor-grace-period={NODE_GRACE_S}s", "--node-monitor-period=1s",
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            "--feature-gates=HPAScaleToZero=true", *FAST,
        )  # fmt: skip
        self._run(
            "kube-scheduler", f"--kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1",
            f"--secure-port={find_free_port()}", "--port=0", "--leader-elect=false", *FAST,
        )  # fmt: skip

    def start_server(self) -> None:
        """The API server alone, again after `kill_server`."""
        self._run(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            "--bind-address=127.0.0.1", f"--secure-port={self._port}",
            "--advertise-address=192.0.2.1", f"--cert-dir={self.folder}/certs",
            f"--tls-cert-file={self.folder}/server.pem",
            f"--tls-private-key-file={self.folder}/server.key",
            f"--token-auth-file={self.folder}/tokens.csv", "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://local",
            f"--service-account-key-file={self.folder}/account.pub",
            f"--service-account-signing-key-file={self.folder}/account.key",
            "--feature-gates=HPAScaleToZero=true", "--runtime-config=api/all=true",
        )  # fmt: skip

    def kill_server(self) -> None:
        """As by `kill -9`."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    async def wait_ready(self, client: ApiClient) -> None:
        """Until the API server says that it is ready."""

        async def ready() -> bool:
            try:
                return await client.read_text("/readyz") == "ok"
            except (ApiAway, ApiRefused):
                return False

        async with asyncio.timeout(START_S):
            while not await ready():
                for name, process in self._processes.items():
                    assert process.poll() is None, (name, self._log(name).read_text()[-2000:])
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End all."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def write_kubeconfig(self, path: Path, token: str, namespace: str) -> Path:
        """A kubeconfig for whoever has `token`."""
        authority = self.folder / "authority.pem"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [
                {
                    "name": "l",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self._port}",
                        "certificate-authority": str(authority),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [
                {"name": "c", "context": {"cluster": "l", "user": "u", "namespace": namespace}}
            ],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    def _write_files(self) -> None:
        certificate = self._authority.issue_cert("127.0.0.1")
        self._authority.cert_pem.write_to_path(str(self.folder / "authority.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))
        certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
        key, public = self.folder / "account.key", self.folder / "account.pub"
        for command in (
            ["openssl", "genrsa", "-out", str(key), "2048"],
            ["openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)],
        ):
            subprocess.run(command, check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f"{self._token},admin,1,system:masters\n")
        self.write_kubeconfig(self.kubeconfig, self._token, "default")

    def _run(self, name: str, *arguments: str) -> None:
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._programs / name), *arguments], stdout=log, stderr=subprocess.STDOUT,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextlib.asynccontextmanager
async def running_control_plane(folder: Path) -> AsyncIterator[ControlPlane]:
    """A control plane, ready."""
    plane = ControlPlane(folder)
    try:
        await plane.start()
        yield plane
    finally:
        await plane.stop()


async def close_client(client: ApiClient) -> None:
    """Close connections, and let them end: TLS takes a few turns of the loop."""
    client.close()
    await asyncio.sleep(0.1)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """The first true value of `condition`, which may be a coroutine function."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                value = condition()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what}") from None
