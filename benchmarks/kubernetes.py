"""The fleet in Kubernetes: what people lose when pods, nodes and versions come and go, and what the
controller asks of the API server.

    python benchmarks/kubernetes.py                      # all of it
    python benchmarks/kubernetes.py --deployments 5 --replicas 20

The control plane is the real one (`python -m tests.cluster.binaries` builds it once); a stand-in for
the kubelet runs pods as processes, with the `echo` engine. For the control loop alone, its nodes are
hollow: pods become ready and nothing runs. Times of a lost node are counted from where Kubernetes has
found the loss and the pods' toleration of 5 s has passed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from common import ROOT, finish, parse_arguments, say

sys.path.insert(0, str(ROOT))

from tests.cluster.binaries import NoBinaries, find_binaries
from tests.cluster.control_plane import ControlPlane, running_control_plane, until
from tests.cluster.running import (
    Service,
    World,
    make_spec,
    running_service,
    running_world,
    version,
)
from tests.control.running import Clients

from thrifty.engines.server import KEY_VARIABLE
from thrifty.home import Home

PEOPLE = 4
TOLERATION_S = 5.0
LONGEST_S = 1800.0
"""How long a thousand replicas may take to be there."""
Row = dict[str, Any]


@asynccontextmanager
async def people(url: str) -> AsyncIterator[Clients]:
    """Clients that ask until the block ends; what fails is counted."""
    clients = Clients(url)
    tasks = [asyncio.ensure_future(clients._ask(number)) for number in range(PEOPLE)]
    try:
        await clients.progress()
        yield clients
        await clients.progress()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for fault in clients.faults[:5]:
        say(f"failed: {fault}")


@asynccontextmanager
async def service_of(
    plane: ControlPlane, folder: Path, nodes: int = 3, *, hollow: bool = False, **more: Any
) -> AsyncIterator[tuple[World, Service, Row]]:
    """A service in a namespace of its own, and its spec."""
    async with running_world(
        plane, folder, nodes, cpu=1000 if hollow else 16, hollow=hollow
    ) as world:
        config = await world.make_account_kubeconfig()
        spec = make_spec(world, config, **{"versions": [version("a", "a1")], **more})
        async with running_service(
            world, Home(folder / "home"), spec, settle_s=LONGEST_S
        ) as service:
            yield world, service, spec


async def kill_a_pod(plane: ControlPlane, folder: Path) -> Row:
    """A pod's process dies: what fails, and how long beyond the engine's start until all are back."""
    async with service_of(plane, folder, replicas=2) as (world, service, _):
        async with people(service.url) as clients:
            pod = world.kubelets.find(service.ready()[0].row.url)
            starts, began_s = len(world.kubelets.started), time.monotonic()
            pod.kill()
            await until(lambda: len(world.kubelets.started) > starts, "it is started again")
            started_s = world.kubelets.started[-1]
            await until(lambda: pod.ready_s > started_s, "it is ready")
            ready_s = pod.ready_s
            await until(lambda: len(service.ready()) == 2, "both are back")
            whole_s = time.monotonic()
        beyond_s = whole_s - began_s - (ready_s - started_s)
        return {"asked": clients.count, "failed": len(clients.faults), "beyond_s": beyond_s}


async def lose_a_node(plane: ControlPlane, folder: Path) -> Row:
    """A node loses its power: what fails, and how long until all are back."""
    async with service_of(plane, folder, replicas=3) as (world, service, _):
        async with people(service.url) as clients:
            name, node = next((n, one) for n, one in world.kubelets.nodes.items() if one.pods)
            lost = [pod.address for pod in node.pods.values()]
            world.kubelets.lose(name)

            async def found() -> bool:
                one = await world.client.request("GET", f"/api/v1/nodes/{name}")
                taints = one["spec"].get("taints") or ()
                return any(taint["effect"] == "NoExecute" for taint in taints)

            await until(found, "the cluster has found it")
            found_s, starts = time.monotonic(), len(world.kubelets.started)

            def whole() -> bool:
                urls = [one.row.url for one in service.ready()]
                return len(urls) == 3 and not any(one in url for url in urls for one in lost)

            await until(whole, "as many as before, elsewhere")
            whole_s = time.monotonic()
            started = world.kubelets.started[starts:]
            newest = max(pod.ready_s for pod in world.kubelets.pods())
            engine_s = newest - max(started)
        beyond_s = whole_s - found_s - TOLERATION_S - engine_s
        return {"asked": clients.count, "failed": len(clients.faults), "beyond_s": beyond_s}


async def change_things(plane: ControlPlane, folder: Path) -> Row:
    """1 -> 4 -> 1 replicas, 90:10, a new revision, a drained node: what fails."""
    async with service_of(plane, folder) as (world, service, spec):
        await world.protect()
        async with people(service.url) as clients:
            for count in (4, 1):
                await service.apply({**spec, "replicas": count})
                await service.wait_ready(count)
                say(f"{count} replicas: {clients.count} asked, {len(clients.faults)} failed")
            both = [version("a", "a1", weight=9), version("b", "b1", weight=1)]
            await service.apply({**spec, "replicas": 2, "versions": both})
            await service.wait_ready(4)
            clients.answers.clear()
            before = clients.count
            await clients.progress(500)
            share = clients.answers["b1"] / (clients.count - before)
            say(f"90:10: b answers {share:.1%}; {len(clients.faults)} failed")
            both[0] = version("a", "a2", weight=9)
            await service.apply({**spec, "replicas": 2, "versions": both})
            await service.wait_settled()
            say(f"another revision: {len(clients.faults)} failed")
            node = next(name for name, one in world.kubelets.nodes.items() if one.pods)
            await world.drain(node)
            await service.wait_ready(4)
            say(f"a drained node: {len(clients.faults)} failed")
        return {"asked": clients.count, "failed": len(clients.faults), "share": share}


async def measure_loop(plane: ControlPlane, folder: Path, deployments: int, replicas: int) -> Row:
    """What the controller asks while nothing happens, and how soon a change reaches the API server."""
    each = replicas // deployments
    several = [
        {"name": f"m{number}", "engine": {"kind": "echo"}, "replicas": {"count": each, "cpus": 1}}
        for number in range(deployments)
    ]
    began_s = time.monotonic()
    async with service_of(
        plane, folder, nodes=3, hollow=True, versions=None, name=None, deployments=several
    ) as (world, service, spec):
        say(f"{len(service.ready())} replicas are there after {time.monotonic() - began_s:.0f} s")
        await asyncio.sleep(5.0)
        before, rest_s = service.fleet.client.calls, time.monotonic()
        await asyncio.sleep(60.0)
        calls = (service.fleet.client.calls - before) / (time.monotonic() - rest_s) * 60
        reactions = []
        for count in (each + 1, each, each + 1):
            several[0]["replicas"] = {"count": count, "cpus": 1}
            await service.apply({**spec, "deployments": several})
            changed_s = time.monotonic()

            async def written(count: int = count) -> bool:
                counts = [one["spec"]["replicas"] for one in await world.deployments()]
                return (each + 1 in counts) == (count == each + 1)

            await until(written, "the number is written")
            reactions.append(time.monotonic() - changed_s)
            await service.wait_settled()
        return {"calls": calls, "reaction_s": max(reactions), "replicas": each * deployments}


async def run(deployments: int, replicas: int) -> dict[str, Row]:
    found: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="thrifty-kubernetes-") as name:
        folder = Path(name)
        async with running_control_plane(folder / "plane") as plane:
            parts: dict[str, Callable[[ControlPlane, Path], Awaitable[Row]]] = {
                "pod": kill_a_pod,
                "node": lose_a_node,
                "changes": change_things,
                "loop": lambda plane, folder: measure_loop(plane, folder, deployments, replicas),
            }
            for part, measure in parts.items():
                say(f"{part} ...")
                found[part] = await measure(plane, folder / part)
                say(f"{part}: {found[part]}")
    return found


def main() -> int:
    options = parse_arguments(
        __doc__ or "", rounds=1,
        deployments=(int, 50, "How many deployments the control loop has."),
        replicas=(int, 1000, "How many replicas they have together."),
    )  # fmt: skip
    try:
        find_binaries()
    except NoBinaries as error:
        say(f"not measured: {error}")
        return 1
    os.environ[KEY_VARIABLE] = "k" * 40
    found = asyncio.run(run(options.deployments, options.replicas))
    pod, node, changes, loop = (found[part] for part in ("pod", "node", "changes", "loop"))
    finish(
        "kubernetes",
        found,
        [
            ("what", "asked", "failed", "until whole, beyond the engine's start"),
            ("a pod killed", str(pod["asked"]), str(pod["failed"]), f"{pod['beyond_s']:.1f} s"),
            ("a node lost", str(node["asked"]), str(node["failed"]), f"{node['beyond_s']:.1f} s"),
            ("changes", str(changes["asked"]), str(changes["failed"]), ""),
        ],
        [
            {"figure": "Kubernetes: a pod killed under load: requests failed; time to full strength "
             "beyond the engine's start", "measured": f"{pod['failed']} of {pod['asked']}; "
             f"{pod['beyond_s']:.1f} s", "bar": "0; 4 s",
             "met": not pod["failed"] and pod["beyond_s"] <= 4},
            {"figure": "Kubernetes: a node lost under load, beyond the cluster's detection, a "
             "toleration of 5 s and the engine's start: requests failed; time to full strength",
             "measured": f"{node['failed']} of {node['asked']}; {node['beyond_s']:.1f} s",
             "bar": "0; 5 s", "met": not node["failed"] and node["beyond_s"] <= 5},
            {"figure": "Kubernetes: 1 to 4 to 1 replicas, 90:10, another revision, a drained node: "
             "requests failed", "measured": f"{changes['failed']} of {changes['asked']}", "bar": "0",
             "met": not changes["failed"]},
            {"figure": f"Kubernetes: control loop at {loop['replicas']} replicas and "
             f"{options.deployments} deployments: calls a minute at rest; reaction",
             "measured": f"{loop['calls']:.0f}; {loop['reaction_s']:.1f} s", "bar": "60; 2 s",
             "met": loop["calls"] <= 60 and loop["reaction_s"] <= 2},
        ],
        save=not options.no_save,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
