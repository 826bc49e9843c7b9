"""The fleet in a Kubernetes cluster: a Deployment for each set of replicas, whose pods are watched.

Kubernetes places pods and starts them anew; this module writes how many there are, and says of each
what gateways need. Pods and Deployments are read by watches, so that nothing is asked while nothing
happens. Pods are the one source: what Endpoints and EndpointSlices say is derived from them, later.

A replica that has to go is chosen here, drained (gateways learn of it first, then what it works on
ends), and only then is its pod deleted and the number lowered, so that it is that pod that goes. Since
version 1.22 Kubernetes takes the pod with the lowest deletion cost; older ones are told by deleting
it first.

Only the holder of the fleet's lease writes. While the API server is away, everything stays as it was
seen last: gateways reach pods without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from thrifty.db.fleet import ReplicaRow
from thrifty.engines.base import Served
from thrifty.fleet.base import (
    Announce,
    ObservedReplica,
    OnChange,
    ReplicaNames,
    ReplicaSet,
    SetKey,
    announce_nothing,
)
from thrifty.fleet.idle import wait_idle
from thrifty.fleet.kubernetes_objects import (
    KubernetesSettings,
    make_selector,
    read_key,
    read_served,
)
from thrifty.fleet.kubernetes_pod import PodView, read_pod
from thrifty.fleet.kubernetes_replica import PodReplica, rank
from thrifty.fleet.kubernetes_writer import RIGHTS, Writer, explain_refusal
from thrifty.fleet.memory import ModelSize
from thrifty.kubernetes.client import MERGE, ApiAway, ApiClient, ApiRefused, Object
from thrifty.kubernetes.config import find_cluster
from thrifty.kubernetes.lease import Lease
from thrifty.kubernetes.watch import Watch
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

EMPTY_POLL_S = 0.25
FORCED_S = 10.0
"""For pods that are killed to be gone."""
DELETE_RETRY_S = 1.0
VERSION_RETRY_S = 1.0
LEASE_POLL_S = 0.5
CHOICE_POLLS = 4
AWAY_AFTER_S = 3.0
"""A watch that broke off and goes on sooner is not worth a word."""
FIRST_LIST_S = 10.0
"""How long a start waits for the first list of pods."""
COST = "controller.kubernetes.io/pod-deletion-cost"
COST_SINCE = (1, 22)


class KubernetesFleet:
    """See the module's docstring, and `fleet.base.Fleet`."""

    elsewhere = True

    def __init__(
        self,
        settings: KubernetesSettings,
        names: ReplicaNames,
        on_change: OnChange,
        announce: Announce = announce_nothing,
        find_size: Callable[[Served], ModelSize] = lambda served: ModelSize(),
    ) -> None:
        """`find_size` says how large what is served is. Raises `FleetError` where no cluster is
        known.
        """
        cluster = find_cluster(settings.kubeconfig, settings.context)
        self.namespace = settings.namespace or cluster.namespace
        self.client = ApiClient(cluster)
        self._names = names
        self._on_change = on_change
        self._announce = announce
        self._desired: dict[SetKey, ReplicaSet] = {}
        self._replicas: dict[str, PodReplica] = {}
        """By the name of their pods."""
        self._leasing = self._watching = False
        self._provisional: list[PodReplica] = []
        """What an earlier controller left, until pods were listed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._listed = asyncio.Event()
        self._by_cost = False
        """Whether the cluster goes by deletion costs."""
        self._stopping = False
        self.lease = Lease(
            self.client, self.namespace, settings.name,
            f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", self._note_lease,
        )  # fmt: skip
        self._writer = Writer(
            self.client, settings, self.namespace, find_size,
            can_write=lambda: self.lease.held and self._listed.is_set(),
            count_leaving=self._count_leaving, is_there=self._is_there, on_change=on_change,
        )  # fmt: skip
        selector = make_selector(settings.name)
        self._pods = Watch(
            self.client, f"/api/v1/namespaces/{self.namespace}/pods", selector,
            on_list=self._take_pods, on_put=self._put_pod, on_gone=self._drop_pod,
            on_fault=on_change,
        )  # fmt: skip
        self._deployments = Watch(
            self.client, self._writer.folder, selector,
            on_list=self._writer.take_all, on_put=self._writer.put,
            on_gone=self._writer.drop, on_fault=on_change,
        )  # fmt: skip

    # Who acts

    async def connect(self, on_wait: Callable[[str], None] = lambda holder: None) -> None:
        """Wait until this controller may act, or until the API server is found to be away: then what
        serves goes on serving. `on_wait` is told who holds the lease.
        """
        self._keep_lease()
        await self.lease.asked.wait()
        told = None
        while self.lease.other is not None and not self.lease.held:
            if self.lease.other != told:
                told = self.lease.other
                log.warning("the controller %s acts; waiting for its lease", told)
                on_wait(told)
            await asyncio.sleep(LEASE_POLL_S)

    def _keep_lease(self) -> None:
        if not self._leasing:
            self._leasing = True
            self._begin(self.lease.run())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    def _watch(self) -> None:
        """Begin to watch and to write, once."""
        if not self._watching:
            self._watching = True
            self._keep_lease()
            for work in (self._ask_version(), self._pods.run(), self._deployments.run()):
                self._begin(work)
            self._begin(self._writer.run())

    async def _ask_version(self) -> None:
        """Learn whether the cluster goes by deletion costs."""
        while True:
            with contextlib.suppress(ApiAway, ApiRefused):
                found = await self.client.request("GET", "/version")
                digits = ["".join(filter(str.isdigit, found[part])) for part in ("major", "minor")]
                self._by_cost = (int(digits[0] or 0), int(digits[1] or 0)) >= COST_SINCE
                return
            await asyncio.sleep(VERSION_RETRY_S)

    @property
    def standing_by(self) -> bool:
        """Whether another controller acts, so that this one must not."""
        return self.lease.other is not None and not self.lease.held

    @property
    def faults(self) -> dict[tuple[str, str], str]:
        """What keeps sets from being as desired, by deployment and label, in plain words."""
        for watch in (self._pods, self._deployments):
            since_s = watch.fault_since_s
            if watch.fault is not None and watch.refused:
                return self._tell_all(f"{watch.fault}; {RIGHTS}")
            if watch.fault is not None and time.time() - since_s > AWAY_AFTER_S:
                when = time.strftime("%H:%M:%S", time.gmtime(since_s))
                return self._tell_all(
                    f"the API server is away since {when} UTC ({watch.fault}); what ran then goes on "
                    "serving, and nothing is changed"
                )
        if self.lease.refusal is not None and not self.lease.held:
            return self._tell_all(explain_refusal(self.lease.refusal, self.namespace))
        return dict(self._writer.faults)

    def _tell_all(self, fault: str) -> dict[tuple[str, str], str]:
        return {(key.deployment, key.version): fault for key in self._desired}

    # The fleet's interface

    async def adopt(self, known: Sequence[tuple[ReplicaRow, ReplicaSet]]) -> None:
        """As `Fleet.adopt` says. Replicas are as their rows say until pods were listed."""
        for row, replica_set in known:
            self._names.claim(row.id)
            replica = PodReplica(row.id, replica_set.key, replica_set.served)
            replica.row_before = row
            self._provisional.append(replica)
        self._watch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LIST_S):
                await self._listed.wait()

    async def apply(self, desired: Sequence[ReplicaSet]) -> None:
        """As `Fleet.apply` says."""
        self._watch()
        self._desired = {replica_set.key: replica_set for replica_set in desired}
        self._writer.desired = self._desired
        self._choose_leaving()
        self._remove_ended()
        self._writer.wake()

    def drain(self, replica_id: str, asked_s: float) -> None:
        """Nothing: see `Fleet.drain`."""

    def observe(self) -> Sequence[ObservedReplica]:
        """As `Fleet.observe` says."""
        return [
            ObservedReplica(replica.key, replica.row(), replica.ready_after_s)
            for replica in (*self._replicas.values(), *self._provisional)
        ]

    async def stop(self, grace_s: float) -> None:
        """As `Fleet.stop` says: all Deployments go, and with them their pods."""
        self._stopping = True
        self._desired = self._writer.desired = {}
        for task in self._leaving:
            task.cancel()
        for replica in self._replicas.values():
            replica.retiring = True
        await self._wait_empty(grace_s)
        for replica in list(self._replicas.values()):
            if replica.view is not None:
                await self._remove_pod(replica.view, gracePeriodSeconds=0)
        await self._wait_empty(FORCED_S)
        await self._end()
        self._replicas.clear()

    async def _wait_empty(self, limit_s: float) -> None:
        """Until nothing of the fleet is left, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._replicas or self._writer.has_any():
                    self._writer.wake()
                    await asyncio.sleep(EMPTY_POLL_S)

    def kill(self) -> None:
        """Deployments stay for the next controller, or for whoever deletes them: ending takes the
        API server time, and there is none.
        """
        self.leave()

    def leave(self) -> None:
        """Stop watching; the pods go on for the next controller."""
        for task in (*self._tasks, *self._leaving):
            task.cancel()
        self.client.close()

    async def hand_over(self) -> None:
        """Stop watching, and let another controller act at once."""
        await self._end()

    async def _end(self) -> None:
        tasks = [*self._tasks, *self._leaving]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.lease.release()
        self.client.close()

    # What is seen

    def _take_pods(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            self._put_pod(pod)
        names = {pod["metadata"]["name"] for pod in pods}
        for name in [name for name in self._replicas if name not in names]:
            self._forget(name)
        # What was left and is not among them is there no more.
        for gone in self._provisional:
            self._names.release(gone.id)
        self._provisional.clear()
        self._listed.set()
        self._writer.wake()
        self._on_change()

    def _put_pod(self, pod: Object) -> None:
        key, served = read_key(pod), read_served(pod)
        if key is None or served is None:
            return
        name, uid = str(pod["metadata"]["name"]), str(pod["metadata"]["uid"])
        replica = self._replicas.get(name)
        if replica is not None and replica.view is not None and replica.view.uid != uid:
            self._forget(name)
            replica = None
        view = read_pod(pod, served_before=replica is not None and replica.served_before)
        if replica is None:
            replica = self._find_provisional(key, view)
            if replica is None:
                replica = PodReplica(self._names.take(key.deployment), key, served)
            self._replicas[name] = replica
        before, counted = (replica.state, replica.message, replica.url), replica.counts
        replica.see(view)
        if (replica.state, replica.message, replica.url) != before:
            log.info("%s (%s): %s %s", replica.id, name, replica.state, replica.message or "")
            self._on_change()
        if counted and not replica.counts:
            self._note_going(replica)
        if replica.retiring and not replica.seen_off:
            self._retire(replica)  # an earlier controller was draining it

    def _drop_pod(self, pod: Object) -> None:
        name = str(pod["metadata"]["name"])
        replica = self._replicas.get(name)
        if replica is not None and replica.view and replica.view.uid == pod["metadata"]["uid"]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        replica = self._replicas.pop(name)
        if replica.counts:
            self._note_going(replica)
        log.info("%s (%s): gone", replica.id, name)
        replica.gone.set()
        self._names.release(replica.id)
        self._writer.wake()
        self._on_change()

    def _find_provisional(self, key: SetKey, view: PodView) -> PodReplica | None:
        """What an earlier controller called a pod that is at this address."""
        for replica in self._provisional:
            row = replica.row_before
            same = row is not None and (row.deployment, row.version, row.revision) == (
                key.deployment, key.version, key.revision,
            )  # fmt: skip
            if same and row is not None and row.url == view.url:
                self._provisional.remove(replica)
                replica.key, replica.row_before = key, None
                replica.served_before = row.state in ("ready", "unhealthy", "draining")
                replica.retiring = row.state == "draining"
                return replica
        return None

    def _note_lease(self) -> None:
        self._writer.wake()
        self._on_change()

    # What goes

    def _choose_leaving(self) -> None:
        """Have as many replicas of each set drain as its Deployment has more than are desired."""
        if self._stopping:
            return
        for key in self._writer.list_sets():
            wanted = self._desired.get(key)
            there = [one for one in self._replicas.values() if one.key == key and one.counts]
            staying = [one for one in there if not one.retiring]
            surplus = self._writer.count_lasting(key) - self._count_leaving(key)
            surplus -= wanted.count if wanted is not None else 0
            if surplus <= 0:
                continue
            work: Mapping[str, float] = wanted.work if wanted is not None else {}
            staying.sort(key=lambda one, work=work: rank(one, work))  # type: ignore[misc]
            for replica in staying[max(0, len(staying) - surplus) :]:
                log.info("%s: is not wanted any more", replica.id)
                self._retire(replica)

    def _retire(self, replica: PodReplica) -> None:
        replica.retire()
        replica.seen_off = True
        self._on_change()
        task = asyncio.ensure_future(self._see_off(replica))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _see_off(self, replica: PodReplica) -> None:
        """Drain a replica, and have its pod deleted."""
        if replica.had_traffic:
            await self._announce()
            await wait_idle(
                replica.id, replica.url, lambda: replica.counts and not replica.gone.is_set()
            )
        if not replica.had_traffic and replica.key not in self._desired:
            self._note_going(replica)  # it goes with its Deployment
            return
        while not replica.gone.is_set() and replica.view is not None and replica.counts:
            try:
                await self._delete(replica.view)
                break
            except ApiRefused as error:
                if error.status in (404, 409):
                    break  # gone already, or another pod of that name
                log.error("%s cannot be deleted: %s", replica.id, error)
            except ApiAway as error:
                log.info("%s is deleted later: %s", replica.id, error)
            await asyncio.sleep(DELETE_RETRY_S)
        self._note_going(replica)
        if self._by_cost:
            await self._await_choice(replica)

    def _note_going(self, replica: PodReplica) -> None:
        """A pod goes. Where it was to go, its Deployment is to ask for one less."""
        if replica.retiring and not replica.deleted:
            replica.deleted = True
            self._writer.owe(replica.key, replica)
        self._writer.wake()

    async def _delete(self, view: PodView) -> None:
        while not self.lease.held:
            await asyncio.sleep(LEASE_POLL_S)
        path = f"/api/v1/namespaces/{self.namespace}/pods/{view.name}"
        if self._by_cost:
            notes = {"metadata": {"uid": view.uid, "annotations": {COST: "-1000000"}}}
            await self.client.request("PATCH", path, notes, kind=MERGE)
        else:
            body = {"preconditions": {"uid": view.uid}}
            await self.client.request("DELETE", path, body)

    async def _await_choice(self, replica: PodReplica) -> None:
        """Wait until the pod that was chosen goes. Where the cluster takes another one, which it does
        with pods that are not ready, the chosen one serves on.
        """
        passed = 0
        while replica.counts and not replica.gone.is_set() and passed < CHOICE_POLLS:
            await asyncio.sleep(LEASE_POLL_S)
            passed = passed + 1 if self._writer.has_settled(replica.key) else 0
        if replica.counts and not replica.gone.is_set():
            log.info("%s: another pod went in its place; it serves on", replica.id)
            replica.retiring = replica.deleted = replica.seen_off = False
            self._on_change()

    def _remove_ended(self) -> None:
        """Have pods deleted that ended for good, such as evicted ones, once their set is whole again:
        until then they tell why it is not.
        """
        for replica in self._replicas.values():
            wanted = self._desired.get(replica.key)
            ended = replica.state is ReplicaState.STOPPED and not replica.seen_off
            if wanted is None or not ended or replica.view is None or replica.view.terminating:
                continue
            ready = sum(
                one.key == replica.key and one.state is ReplicaState.READY
                for one in self._replicas.values()
            )
            if ready >= wanted.count and self.lease.held:
                replica.seen_off = True
                task = asyncio.ensure_future(self._remove_pod(replica.view))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    async def _remove_pod(self, view: PodView, **options: Any) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{view.name}"
        with contextlib.suppress(ApiAway, ApiRefused):
            body = {"preconditions": {"uid": view.uid}, **options}
            await self.client.request("DELETE", path, body)

    def _count_leaving(self, key: SetKey) -> int:
        """How many of a set drain and still have their pods."""
        return sum(
            one.key == key and one.retiring and not one.deleted and one.counts
            for one in self._replicas.values()
        )

    def _is_there(self, key: SetKey) -> bool:
        """Whether a set has a pod that serves, or ends what it works on."""
        return any(
            one.key == key and one.counts and not one.deleted and not self._stopping
            for one in self._replicas.values()
        )


__all__ = ["KubernetesFleet", "KubernetesSettings"]
