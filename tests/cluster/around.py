"""What stands around a gateway in a cluster: a Service that leads to pods, and a metrics adapter.

Both stand in for programs of others that do not run here: kube-proxy, and an adapter of Prometheus that
serves the API of external metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

from tests.cluster.running import World
from thrifty.fleet.ports import find_free_port
from thrifty.kubernetes.client import ApiAway, ApiRefused

GROUP = "external.metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"
_LOOK_S = 0.1


# A Service


class ServiceProxy:
    """One Service on loopback: connections go to its ready pods, and are refused without any."""

    def __init__(self, world: World, name: str) -> None:
        self.port = find_free_port()
        self._world = world
        self._name = name
        self._turn = itertools.count()
        self.addresses: list[tuple[str, int]] = []
        """Of the pods that are ready."""
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def run(self) -> None:
        """Follow the pods until cancelled."""
        try:
            while True:
                with contextlib.suppress(ApiAway, ApiRefused):
                    self.addresses = await self._find_addresses()
                if self.addresses and self._server is None:
                    self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
                elif not self.addresses and self._server is not None:
                    self._server.close()
                    self._server = None
                await asyncio.sleep(_LOOK_S)
        finally:
            if self._server is not None:
                self._server.close()
            for pipe in self._pipes:
                pipe.cancel()

    async def _find_addresses(self) -> list[tuple[str, int]]:
        # Not out of Endpoints: these refuse addresses of loopback, which pods have here.
        path = self._world.path("services", self._name)
        service = (await self._world.client.request("GET", path))["spec"]
        return [
            (pod["status"]["podIP"], port["port"])
            for pod in await self._world.list_all("pods")
            if service["selector"].items() <= pod["metadata"]["labels"].items()
            and not pod["metadata"].get("deletionTimestamp")
            and any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in pod["status"].get("conditions") or ()
            )
            for port in service["ports"]
        ]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        addresses = self.addresses
        try:
            host, port = addresses[next(self._turn) % len(addresses)]
            there, back = await asyncio.open_connection(host, port)
        except (OSError, ZeroDivisionError):
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer), return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


@contextlib.asynccontextmanager
async def running_proxy(world: World, name: str) -> AsyncIterator[ServiceProxy]:
    """The Service, reachable."""
    proxy = ServiceProxy(world, name)
    task = asyncio.ensure_future(proxy.run())
    try:
        yield proxy
    finally:
        task.cancel()
        await asyncio.wait({task})


# External metrics


def read_metric(page: str, name: str, labels: dict[str, str]) -> float:
    """The sum over all series of a metric that have these labels."""
    total = 0.0
    for found in re.finditer(rf"^{re.escape(name)}\{{(.*)\}} (\S+)$", page, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
        if labels.items() <= own.items():
            total += float(found[2])
    return total


@contextlib.contextmanager
def running_adapter(metrics_url: str) -> Iterator[tuple[int, bytes]]:
    """The API of external metrics over what a gateway tells; its port, and its authority as PEM."""
    authority = trustme.CA()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = json.dumps(answer(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def answer(target: str) -> dict[str, Any]:
        asked = urlsplit(target)
        if not asked.path.startswith(f"/apis/{VERSION}/namespaces/"):
            return {
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": [],
            }  # fmt: skip
        name = asked.path.rpartition("/")[2]
        (selector,) = parse_qs(asked.query).get("labelSelector", [""])
        labels = dict(part.split("=", 1) for part in selector.split(",") if part)
        with urllib.request.urlopen(metrics_url, timeout=10) as page:
            value = read_metric(page.read().decode(), name, labels)
        item = {
            "metricName": name, "metricLabels": labels, "value": f"{value:g}",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        return {
            "kind": "ExternalMetricValueList", "apiVersion": VERSION, "metadata": {}, "items": [item],
        }  # fmt: skip

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], authority.cert_pem.bytes()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def offer_adapter(world: World, port: int) -> None:
    """Have the API server pass the group of external metrics on to an adapter on this machine."""
    name = "metrics-adapter"
    await world.client.request(
        "POST", world.path("services"),
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {
                "type": "ExternalName", "externalName": "localhost",
                "ports": [{"port": port, "protocol": "TCP"}],
            },
        },
    )  # fmt: skip
    await world.client.request(
        "POST", "/apis/apiregistration.k8s.io/v1/apiservices",
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                "group": GROUP, "version": "v1beta1", "groupPriorityMinimum": 100,
                "versionPriority": 100, "insecureSkipTLSVerify": True,
                "service": {"name": name, "namespace": world.namespace, "port": port},
            },
        },
    )  # fmt: skip


async def withdraw_adapter(world: World) -> None:
    """Undo `offer_adapter`, whose registration is the whole cluster's."""
    path = f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{GROUP}"
    await world.client.request("DELETE", path)
