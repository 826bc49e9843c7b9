"""A Lease: of several controllers, the one that holds it acts.

The holder writes the lease again every few seconds. Others take it over once it has not changed for
as long as it says, by their own clocks alone: hosts whose clocks differ agree all the same. A holder
that could not write it acts no longer than it lasts, counted from before it asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from thrifty.kubernetes.client import ApiAway, ApiClient, ApiRefused, Object

log = logging.getLogger(__name__)

DURATION_S = 15.0
RENEW_S = 5.0
RETRY_S = 2.0
MARGIN_S = 2.0
"""A holder stops so much earlier than others may begin."""
_CONFLICT = 409
_NOT_FOUND = 404


class Lease:
    """The lease `name` in a namespace. `run` it as a task."""

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        name: str,
        holder: str,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.holder = holder
        """Who we are."""
        self.other: str | None = None
        """Who else holds it, as far as known."""
        self.refusal: ApiRefused | None = None
        """Why the server does not let us have it, where it is not another's."""
        self.asked = asyncio.Event()
        """Set once it is known whether we hold it, or that the server cannot say."""
        self._client = client
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_change = on_change
        self._known: Object | None = None
        self._seen = ("", "")
        """Holder and time of the last renewal by another, and ..."""
        self._seen_s = 0.0
        """... since when they have been so, by our clock."""
        self._valid_until_s = 0.0
        self._held = False

    @property
    def held(self) -> bool:
        """Whether we hold it now, and nobody else can."""
        return time.monotonic() < self._valid_until_s

    async def run(self) -> None:
        """Get it and keep it, until cancelled."""
        while True:
            try:
                await self._turn()
                self.refusal = None
            except (ApiAway, ApiRefused) as error:
                # Whoever took it in between shows at the next turn.
                self._known = None
                conflict = isinstance(error, ApiRefused) and error.status == _CONFLICT
                self.refusal = error if isinstance(error, ApiRefused) and not conflict else None
                log.info("the lease %s cannot be written: %s", self.name, error)
            self.asked.set()
            self._note()
            pause_s = RENEW_S if self.held else RETRY_S
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        """Give it up, so that another need not wait until it ends."""
        if not self.held or self._known is None:
            return
        self._valid_until_s = 0.0
        body = self._make(self._known, holder="")
        try:
            await self._client.request("PUT", f"{self._folder}/{self.name}", body)
        except (ApiAway, ApiRefused) as error:
            log.info("the lease %s ends by itself: %s", self.name, error)

    async def _turn(self) -> None:
        began_s = time.monotonic()
        known = self._known if self.held else None
        if known is None:
            known = await self._read()
        if known is None:
            body = self._make(None, self.holder)
            self._take(await self._client.request("POST", self._folder, body), began_s)
            return
        spec = known.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        if holder not in ("", self.holder) and not self._has_ended(spec, holder):
            self.other = holder
            return
        body = self._make(known, self.holder)
        self._take(await self._client.request("PUT", f"{self._folder}/{self.name}", body), began_s)

    async def _read(self) -> Object | None:
        try:
            return await self._client.request("GET", f"{self._folder}/{self.name}")
        except ApiRefused as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def _has_ended(self, spec: Object, holder: str) -> bool:
        """Whether the lease of another has not changed for as long as it lasts."""
        seen = holder, str(spec.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_s = seen, time.monotonic()
        lasts_s = float(spec.get("leaseDurationSeconds") or DURATION_S)
        return time.monotonic() - self._seen_s > lasts_s

    def _take(self, written: Object, began_s: float) -> None:
        self._known, self.other = written, None
        self._valid_until_s = began_s + DURATION_S - MARGIN_S

    def _note(self) -> None:
        if self.held != self._held:
            self._held = self.held
            log.info("the lease %s is %s", self.name, "ours" if self._held else "not ours")
            self._on_change()

    def _make(self, known: Object | None, holder: str) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (known or {}).get("spec") or {}
        new = before.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": round(DURATION_S),
            "renewTime": now,
            "acquireTime": now if new else before.get("acquireTime") or now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (new and bool(before)),
        }
        metadata = {"name": self.name} if known is None else known["metadata"]
        return {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": metadata, "spec": spec,
        }  # fmt: skip
