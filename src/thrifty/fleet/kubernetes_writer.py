"""Writes the Deployments of a fleet: one for each set, with as many replicas as are desired and drain.

It is the one writer of their number. What another one wrote there is set back, and told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from thrifty.engines.base import Served
from thrifty.fleet.base import OnChange, ReplicaSet, SetKey
from thrifty.fleet.kubernetes_objects import (
    CHECKSUM,
    MANAGER,
    KubernetesSettings,
    make_deployment,
    read_key,
)
from thrifty.fleet.memory import ModelSize, estimate_memory
from thrifty.kubernetes.client import MERGE, ApiAway, ApiClient, ApiRefused, Object

log = logging.getLogger(__name__)

RETRY_S = 2.0
INTRUDER_S = 60.0
"""For so long it is told that somebody else wrote a number of ours."""
RIGHTS = "docs/deploy/kubernetes.md lists the rights that the controller's account needs"
_NOT_FOUND = 404


class Writer:
    """Brings the cluster's Deployments in line with what is desired. `run` it as a task."""

    def __init__(
        self,
        client: ApiClient,
        settings: KubernetesSettings,
        namespace: str,
        find_size: Callable[[Served], ModelSize],
        *,
        can_write: Callable[[], bool],
        count_leaving: Callable[[SetKey], int],
        is_there: Callable[[SetKey], bool],
        on_change: OnChange,
    ) -> None:
        """`count_leaving` says how many of a set drain, and `is_there` whether one of its pods may
        still have requests.
        """
        self.desired: Mapping[SetKey, ReplicaSet] = {}
        self.folder = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self.listed = False
        """Whether the cluster's Deployments are known."""
        self._client = client
        self._settings = settings
        self._namespace = namespace
        self._find_size = find_size
        self._can_write = can_write
        self._count_leaving = count_leaving
        self._is_there = is_there
        self._on_change = on_change
        self._known: dict[SetKey, Object] = {}
        self._refusals: dict[SetKey, str] = {}
        self._intruders: dict[SetKey, tuple[float, str]] = {}
        """Who else wrote a number, and when that was seen (`time.monotonic`)."""
        self._owed: defaultdict[SetKey, set[object]] = defaultdict(set)
        self._written: dict[SetKey, int] = {}
        """How many replicas this controller wrote last."""
        self._woken = asyncio.Event()

    @property
    def faults(self) -> dict[tuple[str, str], str]:
        """Why sets are not as desired, by deployment and label."""
        found = {}
        for key in self.desired:
            told_s, intruder = self._intruders.get(key, (-INTRUDER_S, ""))
            recent = time.monotonic() - told_s < INTRUDER_S
            fault = self._refusals.get(key) or self._find_failure(key)
            fault = fault or (intruder if recent else None)
            if fault is not None:
                found[key.deployment, key.version] = fault
        return found

    def list_sets(self) -> list[SetKey]:
        """The sets that have a Deployment."""
        return list(self._known)

    def has_any(self) -> bool:
        """Whether there is any Deployment, as far as known."""
        return bool(self._known)

    def count_lasting(self, key: SetKey) -> int:
        """How many replicas a set's Deployment asks for, less those that went and that it is to ask
        for no more.
        """
        return _read_count(self._known.get(key) or {}) - len(self._owed[key])

    def owe(self, key: SetKey, replica: object) -> None:
        """A pod went that is not to be made up for: the next number is one less."""
        self._owed[key].add(replica)
        self.wake()

    def has_settled(self, key: SetKey) -> bool:
        """Whether a Deployment has as many pods as it asks for, and no others."""
        one = self._known.get(key) or {}
        status, metadata = one.get("status") or {}, one.get("metadata") or {}
        seen = int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 0)
        return seen and int(status.get("replicas") or 0) == _read_count(one)

    # What is seen

    def take_all(self, deployments: Sequence[Object]) -> None:
        """All Deployments there are."""
        self._known = {}
        for one in deployments:
            self.put(one)
        self.listed = True
        self.wake()

    def put(self, one: Object) -> None:
        """A Deployment as it is now."""
        key = read_key(one)
        if key is None or one["metadata"].get("deletionTimestamp"):
            return
        known = self._known.get(key)
        if known is not None and _is_older(one, known):
            return  # our own write has told more than this
        before = self._find_failure(key)
        self._known[key] = one
        if self._find_failure(key) != before:
            self._on_change()
        if key in self.desired and self._differs(key, one):
            self._note_intruder(key, one)
            self.wake()

    def drop(self, one: Object) -> None:
        """A Deployment that was deleted."""
        key = read_key(one)
        known = self._known.get(key) if key is not None else None
        if key is not None and known and known["metadata"]["uid"] == one["metadata"]["uid"]:
            del self._known[key]
            self.wake()
            self._on_change()

    def wake(self) -> None:
        """Look again at what differs."""
        self._woken.set()

    # What is done

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if not (self.listed and self._can_write()):
                continue  # whoever changes that wakes it
            try:
                done = await self._write_all()
            except ApiAway as error:
                log.warning("Deployments cannot be written: %s", error)
                done = False
            except Exception:
                log.exception("Deployments cannot be written")
                done = False
            if not done:
                asyncio.get_running_loop().call_later(RETRY_S, self.wake)

    async def _write_all(self) -> bool:
        """Write what differs; whether all of it was taken. Raises `ApiAway`."""
        done = True
        for key in dict.fromkeys([*self.desired, *self._known]):
            if not self._can_write():
                return False
            before = self._refusals.pop(key, None)
            try:
                await self._write(key)
            except ApiRefused as error:
                self._refusals[key] = explain_refusal(error, self._namespace)
                done = False
            after = self._refusals.get(key)
            if after != before:
                if after is not None:
                    log.error("%s %s: %s", key.deployment, key.version, after)
                self._on_change()
        return done

    async def _write(self, key: SetKey) -> None:
        wanted, known = self.desired.get(key), self._known.get(key)
        if wanted is None:
            if known is not None and not self._is_there(key):
                await self._delete(key, known)
                return
            if known is not None and _read_count(known) > self._count_leaving(key):
                await self._lower(key, known, self._count_leaving(key))
            return
        if known is not None and not self._differs(key, known):
            return
        body = self._make_body(wanted, known)
        await self._apply(key, body, wanted.count + self._count_leaving(key))

    def _make_body(self, wanted: ReplicaSet, known: Object | None) -> Object:
        memory = estimate_memory(
            wanted, self._settings.memory_bytes, self._find_size(wanted.served)
        )
        name = str(known["metadata"]["name"]) if known is not None else None
        return make_deployment(wanted, self._settings, self._namespace, memory, name)

    async def _apply(self, key: SetKey, body: Object, count: int) -> None:
        body = {**body, "spec": {**body["spec"], "replicas": count}}
        owed = set(self._owed[key])
        self._written[key] = count
        path = f"{self.folder}/{body['metadata']['name']}"
        made = await self._client.apply(path, body, MANAGER)
        log.info("%s: %d replicas are asked for", body["metadata"]["name"], count)
        self._note_written(key, made, owed)

    async def _lower(self, key: SetKey, known: Object, count: int) -> None:
        """Ask for fewer replicas of a set that goes, and change nothing else of it."""
        owed = set(self._owed[key])
        path = f"{self.folder}/{known['metadata']['name']}"
        body = {"metadata": {"uid": known["metadata"]["uid"]}, "spec": {"replicas": count}}
        made = await self._client.request(
            "PATCH", path, body, kind=MERGE, query={"fieldManager": MANAGER}
        )
        self._note_written(key, made, owed)

    def _note_written(self, key: SetKey, made: Object, owed: set[object]) -> None:
        self._owed[key] -= owed
        known = self._known.get(key)
        if known is None or not _is_older(made, known):
            self._known[key] = made

    async def _delete(self, key: SetKey, known: Object) -> None:
        metadata = known["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            await self._client.request("DELETE", f"{self.folder}/{metadata['name']}", body)
        except ApiRefused as error:
            if error.status != _NOT_FOUND:
                raise
        log.info("%s: deleted", metadata["name"])
        self._known.pop(key, None)
        self._owed.pop(key, None)
        self._written.pop(key, None)
        self._intruders.pop(key, None)

    def _differs(self, key: SetKey, known: Object) -> bool:
        wanted = self.desired[key]
        if _read_count(known) != wanted.count + self._count_leaving(key):
            return True
        body = self._make_body(wanted, known)
        notes = known["metadata"].get("annotations") or {}
        return bool(notes.get(CHECKSUM) != body["metadata"]["annotations"][CHECKSUM])

    def _note_intruder(self, key: SetKey, one: Object) -> None:
        """Tell who else writes the number of replicas, if it is not as we wrote it."""
        written = self._written.get(key)
        count = _read_count(one)
        owners = [
            str(entry.get("manager"))
            for entry in one["metadata"].get("managedFields") or ()
            if entry.get("manager") != MANAGER
            and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        ]
        if written is None or count == written or not owners:
            return
        text = (
            f"{owners[0]} set the Deployment {one['metadata']['name']} to {count} replicas, and it was set back to "
            f"{written}: Thrifty writes this number alone. Remove the autoscaler of it, and change "
            "'replicas' in the spec"
        )
        self._intruders[key] = time.monotonic(), text
        log.warning("%s", text)
        self._on_change()

    def _find_failure(self, key: SetKey) -> str | None:
        """Why the cluster makes no pods for a Deployment."""
        status = (self._known.get(key) or {}).get("status") or {}
        for one in status.get("conditions") or ():
            if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
                text = str(one.get("message") or one.get("reason"))
                if "exceeded quota" in text:
                    return f"the quota of the namespace {self._namespace} is used up: {text}"
                return f"the cluster makes no pod: {text}"
        return None


def _read_count(one: Object) -> int:
    count = (one.get("spec") or {}).get("replicas")
    return 0 if not one else 1 if count is None else int(count)


def _is_older(one: Object, known: Object) -> bool:
    """Whether `one` is an earlier state than `known` of the same object."""
    a, b = one["metadata"], known["metadata"]
    return a.get("uid") == b.get("uid") and int(a.get("generation") or 0) < int(
        b.get("generation") or 0
    )


def explain_refusal(error: ApiRefused, namespace: str) -> str:
    """A refusal in plain words, with what to do."""
    if error.status == 403 and "exceeded quota" in str(error):
        return f"the quota of the namespace {namespace} is used up: {error}"
    if error.status == 403:
        return f"the controller's account may not do this in the namespace {namespace}: {error}; {RIGHTS}"
    if error.status == 404:
        return f"the namespace {namespace} does not exist: kubectl create namespace {namespace}"
    return f"the API server refuses the Deployment: {error}"
