"""A small stand-in for the kubelet: nodes whose pods are processes of this machine.

What the control plane sees is as a kubelet has it: nodes with heartbeats, pods that get an address,
start, fail, become ready by their own probes, and end gracefully. A pod's address is one of loopback
(127.x.y.z), so that gateways reach it as they would in a cluster. Mounted paths become folders.
Probes come four times as often as manifests say, so that tests need not wait; graces are as written.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from thrifty.kubernetes.client import ApiAway, ApiClient, ApiRefused
from thrifty.kubernetes.watch import Watch

Object = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
HEARTBEAT_S = 1.0
PACE = 4
"""How much more often probes come than manifests say."""
MAX_THREADS = 128
BACKOFF_S = (0.2, 1.0, 2.0)
UNVERIFIED = ssl._create_unverified_context()
ABSENT = ":absent"
"""Images with this tag are in no registry."""


def now() -> str:
    """As Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass
class Node:
    """One machine of the cluster."""

    name: str
    number: int
    block: int
    """The second part of its pods' addresses, so that runs beside each other do not meet."""
    cpu: int = 16
    memory: str = "64Gi"
    lost: bool = False
    pods: dict[str, Pod] = field(default_factory=dict)
    taken: int = 1

    def take_address(self) -> str:
        """An address that no pod had before."""
        self.taken += 1
        return f"127.{self.block}.{16 * self.number + self.taken // 250}.{1 + self.taken % 250}"


@dataclass
class Pod:
    """One pod of a node."""

    uid: str
    name: str
    namespace: str
    spec: Object
    address: str
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    ready_s: float = 0.0
    """When it became ready the last time (`time.monotonic`)."""
    last_end: Object | None = None
    ending: bool = False
    task: asyncio.Task[None] | None = None
    secrets: dict[Path, Object] = field(default_factory=dict)
    """The volumes with Secrets, by their folders."""

    @property
    def container(self) -> Object:
        found: Object = self.spec["containers"][0]
        return found

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Kubelets:
    """The kubelets of all nodes. `start` them; `stop` them in the end."""

    def __init__(
        self,
        client: ApiClient,
        folder: Path,
        names: Sequence[str],
        cpu: int = 16,
        *,
        hollow: bool = False,
    ) -> None:
        """`hollow` nodes say that their pods are ready, and start no process."""
        block = secrets.randbelow(240) + 10
        self.nodes = {name: Node(name, i, block, cpu) for i, name in enumerate(names)}
        self.started: list[float] = []
        """When each container started (`time.monotonic`)."""
        self._client = client
        self._folder = folder
        self._hollow = hollow
        self._threads = ThreadPoolExecutor(MAX_THREADS)
        self._tasks: list[asyncio.Task[None]] = []
        self._watch = Watch(
            client, "/api/v1/pods", "", on_list=self._take_all, on_put=self._take,
            on_gone=self._drop, on_fault=lambda: None,
        )  # fmt: skip

    async def start(self) -> None:
        """Register the nodes, and take pods from now on."""
        for node in self.nodes.values():
            await self._register(node)
            self._tasks.append(asyncio.ensure_future(self._beat(node)))
        self._tasks.append(asyncio.ensure_future(self._watch.run()))

    async def stop(self) -> None:
        """End every pod's process."""
        tasks = [*self._tasks, *(pod.task for pod in self.pods() if pod.task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for pod in self.pods():
            pod.kill()
            if pod.process is not None:
                await self._in_thread(pod.process.wait)
        self._threads.shutdown()

    def pods(self) -> list[Pod]:
        """Every pod of every node."""
        return [pod for node in self.nodes.values() for pod in node.pods.values()]

    def find(self, address: str) -> Pod:
        """The pod at an address or URL."""
        (found,) = [pod for pod in self.pods() if pod.address in address]
        return found

    def node_of(self, pod: Pod) -> Node:
        """Where a pod runs."""
        return next(node for node in self.nodes.values() if pod.uid in node.pods)

    def lose(self, name: str) -> None:
        """Cut the power of a node: its processes are gone, and nobody says so."""
        node = self.nodes[name]
        node.lost = True
        for pod in node.pods.values():
            if pod.task is not None:
                pod.task.cancel()
            pod.kill()

    async def _register(self, node: Node) -> None:
        labels = {
            "kubernetes.io/hostname": node.name,
            "topology.kubernetes.io/zone": f"z{node.number % 2}",
        }
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
        }
        with contextlib.suppress(ApiRefused):
            await self._client.request("POST", "/api/v1/nodes", body)
        await self._report(node)

    async def _report(self, node: Node) -> None:
        size = {"cpu": str(node.cpu), "memory": node.memory, "pods": "1100"}
        ready = {
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        }  # fmt: skip
        await self._client.request(
            "PATCH", f"/api/v1/nodes/{node.name}/status",
            {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}},
            kind=STRATEGIC,
        )  # fmt: skip

    async def _beat(self, node: Node) -> None:
        while not node.lost:
            with contextlib.suppress(ApiAway, ApiRefused):
                await self._report(node)
            await asyncio.sleep(HEARTBEAT_S)

    # pods

    def _take_all(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            self._take(pod)

    def _take(self, one: Object) -> None:
        node = self.nodes.get(one["spec"].get("nodeName") or "")
        if node is None or node.lost:
            return
        metadata = one["metadata"]
        pod = node.pods.get(metadata["uid"])
        if pod is None and one["status"].get("phase") in ("Failed", "Succeeded"):
            return
        if pod is None:
            pod = Pod(
                metadata["uid"], metadata["name"], metadata["namespace"], one["spec"],
                node.take_address(),
            )  # fmt: skip
            node.pods[pod.uid] = pod
            pod.task = asyncio.ensure_future(self._guard(self._run(pod)))
        if metadata.get("deletionTimestamp") and not pod.ending:
            pod.ending = True
            grace_s = float(metadata.get("deletionGracePeriodSeconds") or 0)
            if pod.task is not None:
                pod.task.cancel()
            pod.task = asyncio.ensure_future(self._guard(self._end(pod, grace_s)))

    def _drop(self, one: Object) -> None:
        for node in self.nodes.values():
            pod = node.pods.pop(one["metadata"]["uid"], None)
            if pod is not None:
                pod.kill()
                if pod.process is not None:
                    pod.process.wait()

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """In a thread of our own: each pod keeps one, and the loop's are few."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            print("kubelet:", repr(error), file=sys.stderr, flush=True)

    async def _run(self, pod: Pod) -> None:
        image = pod.container["image"]
        if image.endswith(ABSENT):
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                text = f'rpc error: code = NotFound desc = "{image}": not found'
                await self._tell(pod, {"waiting": {"reason": reason, "message": text}})
            return
        if self._hollow:
            await self._tell(pod, {"running": {"startedAt": now()}}, ready=True)
            return
        while True:
            try:
                command, environment = await self._prepare(pod)
            except ApiRefused as error:
                state = {"reason": "CreateContainerConfigError", "message": str(error)}
                await self._tell(pod, {"waiting": state})
                await asyncio.sleep(1.0)
                continue
            log = self._folder / f"{pod.name}.log"
            with log.open("ab") as file:
                pod.process = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            began_s = time.monotonic()
            self.started.append(began_s)
            await self._tell(pod, {"running": {"startedAt": now()}})
            status = await self._watch_over(pod)
            lines = log.read_text(errors="replace").splitlines()[-20:]
            pod.last_end = {
                "exitCode": status, "reason": "Error", "finishedAt": now(),
                "message": "\n".join(lines)[-2000:],
            }  # fmt: skip
            pod.restarts += 1
            await self._tell(pod, {"waiting": {"reason": "CrashLoopBackOff"}})
            steady = time.monotonic() - began_s > 10
            await asyncio.sleep(BACKOFF_S[0 if steady else min(pod.restarts - 1, 2)])

    async def _watch_over(self, pod: Pod) -> int:
        """Probe the container until it has ended; its exit status."""
        process = pod.process
        assert process is not None
        ended = asyncio.ensure_future(self._in_thread(process.wait))
        started, ready, failures = False, False, 0
        try:
            while not ended.done():
                probe = pod.container["readinessProbe" if started else "startupProbe"]
                passed = await self._in_thread(self._probe, pod, probe)
                failures = 0 if passed else failures + 1
                if passed and not started:
                    started = True
                    continue
                if not started and failures >= probe["failureThreshold"] * PACE:
                    pod.kill()
                is_ready = started and (passed or (ready and failures < probe["failureThreshold"]))
                if is_ready != ready and not ended.done():
                    ready = is_ready
                    pod.ready_s = time.monotonic() if ready else pod.ready_s
                    await self._tell(pod, {"running": {"startedAt": now()}}, ready=ready)
                await asyncio.wait({ended}, timeout=probe["periodSeconds"] / PACE)
            return int(ended.result())
        finally:
            ended.cancel()

    def _probe(self, pod: Pod, probe: Object) -> bool:
        (port,) = (one["containerPort"] for one in pod.container["ports"])
        scheme = probe["httpGet"].get("scheme", "HTTP").lower()
        url = f"{scheme}://{pod.address}:{port}{probe['httpGet']['path']}"
        timeout_s = probe.get("timeoutSeconds", 1)
        try:
            # As the kubelet does: certificates are not looked at, and none is shown.
            with urllib.request.urlopen(url, timeout=timeout_s, context=UNVERIFIED) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    async def _end(self, pod: Pod, grace_s: float) -> None:
        deadline_s = time.monotonic() + grace_s
        process = pod.process
        if process is not None and process.poll() is None:
            hook = (pod.container.get("lifecycle") or {}).get("preStop")
            if hook and grace_s:
                command = partial(subprocess.run, hook["exec"]["command"])
                await self._in_thread(command)
            process.terminate()
            try:
                await self._in_thread(process.wait, max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                pod.kill()
                await self._in_thread(process.wait)
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        while True:
            try:
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
                await self._client.request("DELETE", path, body)
                return
            except ApiRefused:
                return
            except ApiAway:
                await asyncio.sleep(0.2)

    async def _prepare(self, pod: Pod) -> tuple[list[str], dict[str, str]]:
        """The command and environment of a container here. Raises `ApiRefused`."""
        container = pod.container
        mounts = {}
        volumes = {one["name"]: one for one in pod.spec.get("volumes") or ()}
        for mount in container.get("volumeMounts") or ():
            claim = volumes.get(mount["name"], {}).get("persistentVolumeClaim")
            parts = ["claims", claim["claimName"]] if claim else ["pods", pod.uid, mount["name"]]
            folder = self._folder.joinpath(*parts)
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
            config = volumes.get(mount["name"], {}).get("configMap")
            if config:
                await self._write_config(pod, config["name"], folder)
            secret = volumes.get(mount["name"], {}).get("secret")
            if secret:
                pod.secrets[folder] = secret
                await self._write_secret(pod, folder)
        environment = {"PATH": os.environ["PATH"]}
        for one in container.get("env") or ():
            value = one.get("value")
            if value is None:
                value = await self._read_secret(pod, one["valueFrom"]["secretKeyRef"])
            if value is not None:
                environment[one["name"]] = place(value, mounts)
        models = mounts.get("/var/lib/thrifty/models")
        if models is not None:
            link = mounts["/var/lib/thrifty"] / "models"
            if not link.is_symlink():
                link.symlink_to(models)
        assert container["command"] == ["thrifty"]
        address = {"0.0.0.0": pod.address}
        arguments = [address.get(one, place(one, mounts)) for one in container["args"]]
        return [sys.executable, "-m", "thrifty", *arguments], environment

    async def _write_config(self, pod: Pod, name: str, folder: Path) -> None:
        """The files of a ConfigMap. Raises `ApiRefused`."""
        path = f"/api/v1/namespaces/{pod.namespace}/configmaps/{name}"
        for file, text in ((await self._client.request("GET", path)).get("data") or {}).items():
            (folder / file).write_text(text)

    async def sync_secrets(self) -> None:
        """Bring changed Secrets into pods that run, as kubelets do every minute."""
        for pod in self.pods():
            for folder in pod.secrets:
                await self._write_secret(pod, folder)

    async def _write_secret(self, pod: Pod, folder: Path) -> None:
        """The files of a Secret, each at once. Raises `ApiRefused`."""
        source = pod.secrets[folder]
        path = f"/api/v1/namespaces/{pod.namespace}/secrets/{source['secretName']}"
        data = (await self._client.request("GET", path)).get("data") or {}
        for item in source["items"]:
            part = folder / f".{item['path']}"
            part.write_bytes(base64.b64decode(data[item["key"]]))
            part.replace(folder / item["path"])

    async def _read_secret(self, pod: Pod, reference: Object) -> str | None:
        path = f"/api/v1/namespaces/{pod.namespace}/secrets/{reference['name']}"
        try:
            secret = await self._client.request("GET", path)
        except ApiRefused:
            if reference.get("optional"):
                return None
            raise
        value = (secret.get("data") or {}).get(reference["key"])
        if value is None and not reference.get("optional"):
            raise ApiRefused(
                404, "NotFound",
                f'couldn\'t find key {reference["key"]} in Secret {pod.namespace}/{reference["name"]}',
            )  # fmt: skip
        return base64.b64decode(value).decode() if value is not None else None

    async def _tell(self, pod: Pod, state: Object, *, ready: bool = False) -> None:
        """Write a pod's status; again and again while the API server is away."""
        last = {"terminated": pod.last_end} if pod.last_end else {}
        container = {
            "name": pod.container["name"], "image": pod.container["image"], "imageID": "",
            "ready": ready, "started": "running" in state, "restartCount": pod.restarts,
            "state": {"waiting": None, "running": None, **state}, "lastState": last,
        }  # fmt: skip
        truth = {True: "True", False: "False"}
        conditions = [
            {"type": kind, "status": truth[value], "lastTransitionTime": now()}
            for kind, value in (
                ("Initialized", True), ("ContainersReady", ready), ("Ready", ready)
            )
        ]  # fmt: skip
        pulled = "waiting" not in state or pod.restarts > 0
        status = {
            "phase": "Running" if pulled else "Pending", "hostIP": "192.0.2.10",
            "podIP": pod.address, "podIPs": [{"ip": pod.address}], "startTime": now(),
            "conditions": conditions, "containerStatuses": [container],
        }  # fmt: skip
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        while True:
            try:
                await self._client.request("PATCH", path, {"status": status}, kind=STRATEGIC)
                return
            except ApiRefused as error:
                if error.status != 404:
                    raise
                return
            except ApiAway:
                await asyncio.sleep(0.2)


def place(text: str, mounts: dict[str, Path]) -> str:
    """A path in the container, as a folder here."""
    for path, folder in sorted(mounts.items(), reverse=True):
        if text == path or text.startswith(f"{path}/"):
            return f"{folder}{text[len(path) :]}"
    return text
