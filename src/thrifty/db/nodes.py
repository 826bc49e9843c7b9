"""Node numbers: they prevent two gateway workers from generating the same response id.

A worker claims one of 1,024 numbers as a lease and renews it. While the database is unavailable, or
if all numbers are taken, it uses a random one. Two workers may then share a number for a while, and
generate the same id only within the same millisecond (1 in 1,024 times the chance of that).
"""

from __future__ import annotations

import logging
import random

from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.leases import make_owner, read_clock_s, release_lease, take_lease
from thrifty.db.tables import leases
from thrifty.errors import DatabaseError

log = logging.getLogger(__name__)

NODES = 1024
TTL_S = 600.0
"""How long a worker keeps its number without renewal. It is long, so that a worker that was
suspended or cut off from the database rarely finds its number taken afterwards."""
RENEW_S = 60.0
"""The interval at which callers should renew."""
_PREFIX = "node-"


class NodeClaim:
    """A node number with its lease. Used by one thread."""

    def __init__(self, database: Database, *, nodes: int = NODES, ttl_s: float = TTL_S) -> None:
        self._database = database
        self._nodes = nodes
        self._ttl_s = ttl_s
        self._owner = make_owner()
        self.number = random.SystemRandom().randrange(nodes)
        self.held = False
        """Whether this process held the lease at the last renewal."""
        self.renew()

    def renew(self) -> int:
        """Renew the lease, or claim a number if there is no lease; returns the number to use.

        The number changes if the lease was lost to another process, or if no number could be
        claimed before. Never raises: without the database the number stays.
        """
        try:
            if not (self.held and self._take(self.number)):
                self._claim()
        except DatabaseError as error:
            # The lease may still be valid; that is checked when the database is back.
            log.warning("the node number %d cannot be renewed: %s", self.number, error)
        return self.number

    def release(self) -> None:
        """Release the number. Never raises."""
        if not self.held:
            return
        self.held = False
        try:
            release_lease(self._database, f"{_PREFIX}{self.number}", self._owner)
        except DatabaseError as error:
            log.info("the node number %d was not released: %s", self.number, error)

    def _claim(self) -> None:
        self.held = False
        free = sorted(set(range(self._nodes)) - self._read_taken())
        # In random order, so that workers that start together rarely want the same one.
        random.SystemRandom().shuffle(free)
        for number in free:
            if self._take(number):
                self.number, self.held = number, True
                return
        log.warning(
            "all %d node numbers are taken; %d is used and may also be used by another worker",
            self._nodes, self.number,
        )  # fmt: skip

    def _read_taken(self) -> set[int]:
        """The numbers with valid leases."""
        with self._database.begin() as connection:
            running = select(leases.c.name).where(
                leases.c.name.startswith(_PREFIX), leases.c.until_s >= read_clock_s(connection)
            )
            names = connection.execute(running).scalars().all()
        return {int(name.removeprefix(_PREFIX)) for name in names}

    def _take(self, number: int) -> bool:
        return take_lease(
            self._database, f"{_PREFIX}{number}", self._owner, self._ttl_s, force=False
        )
