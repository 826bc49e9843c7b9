"""Which version each conversation of the last requests was assigned to, in this worker.

The request log has a request only once it has ended. A step of a release needs to know of those
under way, too, so that their conversations stay on their versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

GENERATION = 8192
"""Between one and two times as many conversations are known: some 4 MB of a busy deployment."""


class RecentConversations:
    """The newest conversations. Used on the event loop; `note` is on the request path."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._young: dict[str, tuple[str, float]] = {}
        self._old: dict[str, tuple[str, float]] = {}

    def note(self, conversation_id: str, label: str) -> None:
        """A request of a conversation was assigned to a version."""
        if len(self._young) >= GENERATION:
            self._old, self._young = self._young, {}
        self._young[conversation_id] = label, self._clock()

    def list_since(self, seconds: float) -> Iterator[tuple[str, str]]:
        """Conversations with a request in the last `seconds`, and their versions' labels."""
        since_s = self._clock() - seconds
        for conversation_id, (label, at_s) in (self._old | self._young).items():
            if at_s >= since_s:
                yield conversation_id, label
