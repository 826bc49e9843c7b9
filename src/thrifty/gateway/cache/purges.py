"""The cache purges known to this worker."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.db.cache import Purge
from thrifty.gateway.cache.exact import Owner


class Purges:
    """The purges that are still in effect."""

    def __init__(self) -> None:
        self._known: Sequence[Purge] = ()
        self.newest_id = 0
        """The id of the newest known purge."""

    def update(self, purges: Sequence[Purge]) -> list[Purge]:
        """Take the purges from the database; returns those that are new."""
        fresh = [purge for purge in purges if purge.id > self.newest_id]
        self._known = purges
        if fresh:
            self.newest_id = fresh[-1].id
        return fresh

    def cover(self, owner: Owner, purge_id: int) -> bool:
        """Whether an answer is purged whose generation began when `purge_id` was the newest
        purge.
        """
        if purge_id >= self.newest_id:
            return False
        return any(
            purge.id > purge_id and purge.matches(owner.deployment, owner.version, owner.tenant)
            for purge in self._known
        )
