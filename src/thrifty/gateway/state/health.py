"""Passive health checks: circuit breaking and outlier ejection.

Plain code over plain state; the time is passed in. One `Health` observes the replicas of one
version through the requests that this worker sends:

- A replica that just failed is avoided for `AVOID_S` if there are others. This gives the controller
  time to notice that a replica is gone.
- A replica that fails `CONSECUTIVE` times in a row, or much more often than the rest of the fleet,
  is ejected. It receives nothing for `EJECT_S`, then twice as long each further time, up to
  `MAX_EJECT_S`.
- After that it is on trial: it receives one request at a time. A success restores it, a failure
  ejects it again.
- At most `MAX_SHARE` of the ready replicas are ejected. If everything fails, the cause is not one
  replica, and ejecting more would overload the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

AVOID_S = 1.0
CONSECUTIVE = 3
EJECT_S = 5.0
MAX_EJECT_S = 300.0
MAX_SHARE = 0.5
HALF_LIFE_S = 15.0
"""Observations lose half their weight in this time."""
DECAY_S = 0.5
MIN_REQUESTS = 10.0
"""A failure rate over fewer requests than this is ignored."""
MIN_FAILURE_RATE = 0.25
FLEET_FACTOR = 3.0
"""A replica is an outlier if its failure rate is at least `MIN_FAILURE_RATE` and this many times
the combined rate of all others."""
RESET_S = 120.0
"""After this long without an ejection, the ejection time starts over at `EJECT_S`."""
MAX_TRIAL_S = 60.0
"""A trial request that has not ended by then counts as lost, and another one is sent."""


class ReplicaLike(Protocol):
    """A replica with an id."""

    @property
    def id(self) -> str:
        """The replica's id."""
        ...


AnyReplica = TypeVar("AnyReplica", bound=ReplicaLike)


@dataclass(slots=True)
class _Record:
    """Observations of one replica."""

    good: float = 0.0
    bad: float = 0.0
    updated_s: float = 0.0
    consecutive: int = 0
    avoid_until_s: float = 0.0
    ejections: int = 0
    ejected_until_s: float = 0.0
    restored_s: float = 0.0
    """When it returned from its last ejection."""
    trial_s: float = 0.0
    """When the trial request in progress was sent; 0 if there is none."""

    @property
    def ejected(self) -> bool:
        """Whether it is ejected or on trial."""
        return self.ejected_until_s > 0

    def decay(self, now_s: float) -> None:
        """Apply the decay of observations up to `now_s`."""
        if now_s > self.updated_s + DECAY_S:
            factor = math.exp2((self.updated_s - now_s) / HALF_LIFE_S)
            self.good *= factor
            self.bad *= factor
            self.updated_s = now_s

    @property
    def rate(self) -> float:
        """The failure rate."""
        seen = self.good + self.bad
        return self.bad / seen if seen else 0.0


class Health:
    """The health of one version's replicas, by id. Times are seconds of any one clock."""

    __slots__ = ("_records", "_suspects", "ejections")

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._suspects: set[str] = set()
        """Ids of replicas that may have to be avoided."""
        self.ejections = 0
        """How many times a replica was ejected."""

    @property
    def all_healthy(self) -> bool:
        """Whether no replica is ejected, on trial or avoided. A cheap check."""
        return not self._suspects

    def choose_from(self, ready: Sequence[AnyReplica], now_s: float) -> Sequence[AnyReplica]:
        """The replicas of `ready` that may receive requests; at least one if `ready` is not empty.
        If a replica is due for its trial, only that one is returned.
        """
        if not self._suspects or len(ready) < 2:
            return ready
        good, avoided = [], []
        for replica in ready:
            record = self._records.get(replica.id) if replica.id in self._suspects else None
            if record is None:
                good.append(replica)
            elif record.ejected:
                if record.ejected_until_s <= now_s and self._may_try(record, now_s):
                    return [replica]
            elif record.avoid_until_s > now_s:
                avoided.append(replica)
            else:
                self._suspects.discard(replica.id)
                good.append(replica)
        return good or avoided or ready

    def note_sent(self, replica_id: str, now_s: float) -> None:
        """Record that a request was sent. This matters only for a replica on trial."""
        record = self._records.get(replica_id)
        if record is not None and record.ejected and record.ejected_until_s <= now_s:
            record.trial_s = now_s

    def note_unknown(self, replica_id: str) -> None:
        """Record a request that ended without a verdict, for example because its client left."""
        record = self._records.get(replica_id)
        if record is not None:
            record.trial_s = 0.0

    def note_success(self, replica_id: str, now_s: float) -> bool:
        """Record a success; returns whether it restored an ejected replica."""
        record = self._record(replica_id, now_s)
        record.good += 1
        record.consecutive = 0
        if not record.ejected:
            return False
        if record.ejected_until_s > now_s and not record.trial_s:
            return False  # an answer to a request sent before the ejection
        record.ejected_until_s = record.trial_s = record.avoid_until_s = 0.0
        record.bad = 0.0
        record.restored_s = now_s
        self._suspects.discard(replica_id)
        return True

    def note_failure(self, replica_id: str, ready: Collection[str], now_s: float) -> bool:
        """Record a failure; returns whether it ejected the replica. `ready` holds the ids of the
        ready replicas.
        """
        record = self._record(replica_id, now_s)
        record.bad += 1
        record.consecutive += 1
        record.avoid_until_s = now_s + AVOID_S
        if not record.ejected and now_s - record.restored_s > RESET_S:
            record.ejections = 0
        self._suspects.add(replica_id)
        if record.ejected:
            if record.trial_s:
                self._eject(record, now_s)
                return True
            return False
        if record.consecutive < CONSECUTIVE and not self._is_outlier(replica_id, record, now_s):
            return False
        if not self._may_eject(replica_id, ready):
            return False
        self._eject(record, now_s)
        return True

    def count_ejected(self, ids: Collection[str]) -> int:
        """How many of `ids` are ejected."""
        if not self._suspects:
            return 0
        return sum(1 for i in self._suspects if i in ids and self._records[i].ejected)

    def is_ejected(self, replica_id: str) -> bool:
        """Whether a replica is ejected or on trial."""
        record = self._records.get(replica_id)
        return record is not None and record.ejected

    def keep_only(self, ids: Collection[str]) -> None:
        """Drop the records of all replicas but these."""
        for gone in [known for known in self._records if known not in ids]:
            del self._records[gone]
            self._suspects.discard(gone)

    def forget(self, replica_id: str) -> None:
        """Drop the record of a replica whose id now belongs to a new replica."""
        self._records.pop(replica_id, None)
        self._suspects.discard(replica_id)

    def _record(self, replica_id: str, now_s: float) -> _Record:
        record = self._records.get(replica_id)
        if record is None:
            record = self._records[replica_id] = _Record(updated_s=now_s)
        record.decay(now_s)
        return record

    def _may_try(self, record: _Record, now_s: float) -> bool:
        return not record.trial_s or now_s - record.trial_s > MAX_TRIAL_S

    def _may_eject(self, replica_id: str, ready: Collection[str]) -> bool:
        out = sum(1 for i in ready if i != replica_id and self.is_ejected(i))
        return out + 1 <= len(ready) * MAX_SHARE

    def _eject(self, record: _Record, now_s: float) -> None:
        record.ejections += 1
        lasts_s = min(MAX_EJECT_S, EJECT_S * 2.0 ** (record.ejections - 1))
        record.ejected_until_s = now_s + lasts_s
        record.trial_s = 0.0
        record.consecutive = 0
        self.ejections += 1

    def _is_outlier(self, replica_id: str, record: _Record, now_s: float) -> bool:
        if record.good + record.bad < MIN_REQUESTS or record.rate < MIN_FAILURE_RATE:
            return False
        good = bad = 0.0
        for other_id, other in self._records.items():
            if other_id != replica_id:
                other.decay(now_s)
                good += other.good
                bad += other.bad
        if good + bad < MIN_REQUESTS:
            return False
        return record.rate >= FLEET_FACTOR * bad / (good + bad)
