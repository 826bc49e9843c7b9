"""Pods as local processes: what a manifest's containers would run, run here.

The command, arguments, environment, files and probe come from the manifest. Only places are mapped:
folders below one of the test's own, addresses to loopback, ports and names of Services to free ports.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts import wait_until
from thrifty.fleet.ports import find_free_port

Objects = list[dict[str, Any]]


@dataclass
class Pod:
    """One pod of a Deployment."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    container: dict[str, Any]
    log: Path

    def probe(self, kind: str) -> int:
        """The status that the kubelet's probe would see; 0 where nothing listens."""
        path = self.container[kind]["httpGet"]["path"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_ready(self) -> None:
        """Until its readiness probe succeeds."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.probe("readinessProbe") == 200

        wait_until(ready, 120, f"{self.name} is ready")

    def terminate(self) -> int:
        """As the kubelet does, once preStop is over."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Cluster:
    """Runs Deployments of manifests. `secrets` are the keys of their Secret."""

    def __init__(self, objects: Objects, folder: Path, secrets: dict[str, str]) -> None:
        self.objects = objects
        self.pods: list[Pod] = []
        self._folder = folder
        self._secrets = secrets
        self._ports = {
            one["metadata"]["name"]: find_free_port()
            for one in objects if one["kind"] == "Service"
        }  # fmt: skip

    def start(self, name: str) -> Pod:
        """One pod of the Deployment `name`."""
        deployment = self._find("Deployment", name)
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        root = self._folder / name
        mounts = self._mount(root, spec, container)
        (port,) = container["ports"]
        own = self._ports[name]

        def place(text: str) -> str:
            for path, folder in sorted(mounts.items(), reverse=True):
                if text == path or text.startswith(f"{path}/"):
                    return f"{folder}{text[len(path) :]}"
            return {"0.0.0.0": "127.0.0.1", str(port["containerPort"]): str(own)}.get(text, text)

        environment = {
            one["name"]: place(one["value"]) if "value" in one else self._read_secret(one)
            for one in container["env"]
        }
        environment = {key: value for key, value in environment.items() if value is not None}
        assert container["command"] == ["thrifty"]
        command = [sys.executable, "-m", "thrifty", *map(place, container["args"])]
        log = root / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env={"PATH": os.environ["PATH"], **environment},
                stdout=file, stderr=subprocess.STDOUT, cwd=root,
            )  # fmt: skip
        pod = Pod(name, process, own, container, log)
        self.pods.append(pod)
        return pod

    def url(self, name: str) -> str:
        """Where the Service `name` is."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def stop(self) -> None:
        """End what runs."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.terminate()
        for pod in self.pods:
            try:
                pod.process.wait(60)
            except subprocess.TimeoutExpired:
                pod.process.kill()
                pod.process.wait()

    def _find(self, kind: str, name: str) -> dict[str, Any]:
        (one,) = (
            one for one in self.objects
            if one["kind"] == kind and one["metadata"]["name"] == name
        )  # fmt: skip
        return one

    def _mount(
        self, root: Path, spec: dict[str, Any], container: dict[str, Any]
    ) -> dict[str, Path]:
        """Folders for the volumes, by their path in the container."""
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {}
        for mount in container["volumeMounts"]:
            folder = root / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
            config = volumes[mount["name"]].get("configMap")
            for file, text in (
                self._find("ConfigMap", config["name"])["data"].items() if config else ()
            ):
                (folder / file).write_text(self._map_addresses(text))
        return mounts

    def _map_addresses(self, text: str) -> str:
        """A configuration with the names of Services mapped to ports of loopback."""
        for service in (one for one in self.objects if one["kind"] == "Service"):
            name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
            text = text.replace(f"http://{name}:{port}", f"http://127.0.0.1:{self._ports[name]}")
        text = text.replace("host: 0.0.0.0", "host: 127.0.0.1")
        return re.sub(
            r"^  port: \d+$",
            f"  port: {self._ports.get('thrifty-gateway')}",
            text,
            flags=re.MULTILINE,
        )

    def _read_secret(self, one: dict[str, Any]) -> str | None:
        reference = one["valueFrom"]["secretKeyRef"]
        value = self._secrets.get(reference["key"])
        assert value is not None or reference.get("optional"), reference
        return value
