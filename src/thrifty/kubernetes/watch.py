"""A list of objects that is kept current by watching it: nothing is asked again and again.

A watch that ends, or breaks, goes on from the last version that was seen. Only where the server has
forgotten that version (410) is the whole list read again, so that what was missed shows.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from thrifty.kubernetes.client import ApiAway, ApiClient, ApiRefused, Object

log = logging.getLogger(__name__)

WATCH_S = 240.0
"""How long one watch lasts: a request every few minutes tells a server that is gone from one at rest."""
PAGE = 500
SHORT_S = 1.0
"""A watch that ends sooner is not begun again at once."""
RETRY_S = (0.1, 0.25, 0.5, 1.0, 2.0)
_GONE = 410


class Watch:
    """Objects of one kind with certain labels. `run` it as a task."""

    def __init__(
        self,
        client: ApiClient,
        path: str,
        labels: str,
        *,
        on_list: Callable[[Sequence[Object]], None],
        on_put: Callable[[Object], None],
        on_gone: Callable[[Object], None],
        on_fault: Callable[[], None],
    ) -> None:
        """`on_list` gets all there is, first and after a gap; then `on_put` what is new or changed,
        and `on_gone` what was deleted. `on_fault` is called when `fault` changes.
        """
        self.synced = False
        """Whether the list was read once."""
        self.fault: str | None = None
        """Why nothing comes at the moment; None while the watch runs."""
        self.fault_since_s = 0.0
        """When that began (seconds since 1970)."""
        self.refused = False
        """Whether the server is there, and says no."""
        self._client = client
        self._path = path
        self._labels = labels
        self._on_list = on_list
        self._on_put = on_put
        self._on_gone = on_gone
        self._on_fault = on_fault
        self._version = ""
        """The version of the list that was seen last; empty: read it whole."""
        self._failures = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                self._failures = 0
            except ApiRefused as error:
                if error.status == _GONE:
                    self._version = ""
                    continue
                self.refused = True
                await self._wait(f"the API server refuses to list {self._path}: {error}")
            except ApiAway as error:
                self.refused = False
                await self._wait(str(error))
            except Exception as error:
                # A fault of ours with one object must not end the watching of all.
                log.exception("the watch of %s failed", self._path)
                self._version = ""
                await self._wait(repr(error))

    async def _list(self) -> None:
        found: list[Object] = []
        query = {"labelSelector": self._labels, "limit": str(PAGE)}
        while True:
            page = await self._client.request("GET", self._path, query=query)
            found += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self._on_list(found)
        self._version = str(metadata.get("resourceVersion") or "")
        self.synced = True
        self._note(None)

    async def _follow(self) -> None:
        # Watches that began together do not end together.
        timeout_s = WATCH_S * random.uniform(0.8, 1.2)
        began_s = time.monotonic()
        query = {
            "labelSelector": self._labels,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
        }
        await self._client.watch(self._path, self._take, timeout_s, query, self._note_running)
        if self._version and time.monotonic() - began_s < SHORT_S:
            raise ApiAway("the watch was ended at once")

    def _note_running(self) -> None:
        self._failures = 0
        self._note(None)

    def _take(self, kind: str, one: Object) -> None:
        if kind == "ERROR":
            # The version is too old, or the server lost its place: begin anew.
            self._version = ""
            return
        version = (one.get("metadata") or {}).get("resourceVersion")
        if kind in ("ADDED", "MODIFIED"):
            self._on_put(one)
        elif kind == "DELETED":
            self._on_gone(one)
        if version and self._version:
            self._version = str(version)

    async def _wait(self, fault: str) -> None:
        self._note(fault)
        pause_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    def _note(self, fault: str | None) -> None:
        if (fault is None) != (self.fault is None):
            self.fault_since_s = time.time()
            if fault is not None:
                log.warning("%s is not watched: %s", self._path, fault)
            else:
                log.info("%s is watched again", self._path)
            self.fault = fault
            self._on_fault()
        self.fault = fault
