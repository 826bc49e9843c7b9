"""Node numbers: what keeps two gateway workers from making the same response id.

A worker claims one of 1,024 numbers as a lease and renews it. While the database is away, or when
all numbers are taken, it goes on with a random one: two workers may then share it for a while, and
make the same id only within the same millisecond (1 in 1,024 times the chance of that).
"""

from __future__ import annotations

import logging
import os
import random
import socket

from sqlalchemy import select

from thrifty.db.database import Database
from thrifty.db.leases import read_clock_s, release_lease, take_lease
from thrifty.db.tables import leases
from thrifty.errors import DatabaseError

log = logging.getLogger(__name__)

NODES = 1024
TTL_S = 600.0
"""How long a number stays a worker's without renewal. It is long, so that a worker that was
suspended, or cut off from the database, seldom wakes up to find its number with another."""
RENEW_S = 60.0
"""How often callers should renew."""
_PREFIX = "node-"


class NodeClaim:
    """A node number and the lease that makes it this process's own. Used by one thread."""

    def __init__(self, database: Database, *, nodes: int = NODES, ttl_s: float = TTL_S) -> None:
        self._database = database
        self._nodes = nodes
        self._ttl_s = ttl_s
        self._owner = f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(8).hex()}"
        self.number = random.SystemRandom().randrange(nodes)
        self.held = False
        """Whether the lease was this process's when it was last renewed."""
        self.renew()

    def renew(self) -> int:
        """Renew the lease, or claim a number where there is none; returns the number to use now.

        It changes when the lease was lost to another process, and when a number could not be
        claimed before. Never raises: without the database the number stays.
        """
        try:
            if not (self.held and self._take(self.number)):
                self._claim()
        except DatabaseError as error:
            # The lease may still run; whether it does shows when the database is back.
            log.warning("the node number %d cannot be renewed: %s", self.number, error)
        return self.number

    def release(self) -> None:
        """Give the number back. Never raises."""
        if not self.held:
            return
        self.held = False
        try:
            release_lease(self._database, f"{_PREFIX}{self.number}", self._owner)
        except DatabaseError as error:
            log.info("the node number %d was not given back: %s", self.number, error)

    def _claim(self) -> None:
        self.held = False
        free = sorted(set(range(self._nodes)) - self._read_taken())
        # In random order, so that workers that start together seldom want the same one.
        random.SystemRandom().shuffle(free)
        for number in free:
            if self._take(number):
                self.number, self.held = number, True
                return
        log.warning(
            "all %d node numbers are taken; %d is used and may be another worker's, too",
            self._nodes, self.number,
        )  # fmt: skip

    def _read_taken(self) -> set[int]:
        """The numbers whose leases run."""
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
