"""Which replicas are better left alone: circuit breaking and outlier ejection.

Plain code over plain state, with the time passed in. One `Health` watches the replicas of one
deployment by the requests that this worker sent to them:

- A replica that just failed is avoided for `AVOID_S`, where there are others: the controller needs a
  moment to see that it is gone.
- One that failed `CONSECUTIVE` times in a row, or fails much oftener than the rest of the fleet, is
  ejected: it gets nothing for `EJECT_S`, twice as long each further time, and `MAX_EJECT_S` at most.
- When the time is over it is on trial: one request at a time goes to it. An answer brings it
  back, a failure ejects it again.
- Never is more than `MAX_SHARE` of the ready replicas left alone: when everything fails, the fault
  is not one replica's, and the rest would only break under the load.
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
"""What was seen counts half after so long."""
DECAY_S = 0.5
LEAST_SEEN = 10.0
"""A rate over fewer requests than this says nothing."""
LEAST_RATE = 0.25
TIMES_FLEET = 3.0
"""A replica's rate of failures stands out where it is at least `LEAST_RATE` and so many times that
of all others together."""
FORGIVE_S = 120.0
"""When a replica was back for so long, its next ejection is the first again."""
MAX_TRIAL_S = 60.0
"""A trial that has not ended by then was lost on the way; another begins."""


class Watched(Protocol):
    """A replica."""

    @property
    def id(self) -> str:
        """Its name."""
        ...


AnyWatched = TypeVar("AnyWatched", bound=Watched)


@dataclass(slots=True)
class _Record:
    """What is known of one replica."""

    good: float = 0.0
    bad: float = 0.0
    updated_s: float = 0.0
    in_row: int = 0
    avoid_until_s: float = 0.0
    ejections: int = 0
    ejected_until_s: float = 0.0
    back_s: float = 0.0
    """When it came back from its last ejection."""
    trial_s: float = 0.0
    """When the request under way was sent whose answer decides; 0 where none is."""

    @property
    def ejected(self) -> bool:
        """Whether it is out, or on trial."""
        return self.ejected_until_s > 0

    def decay(self, now_s: float) -> None:
        """Let what was seen fade."""
        if now_s > self.updated_s + DECAY_S:
            factor = math.exp2((self.updated_s - now_s) / HALF_LIFE_S)
            self.good *= factor
            self.bad *= factor
            self.updated_s = now_s

    @property
    def rate(self) -> float:
        """The share of failures."""
        seen = self.good + self.bad
        return self.bad / seen if seen else 0.0


class Health:
    """The health of one deployment's replicas, by id. Times in seconds of any one clock."""

    __slots__ = ("_records", "_troubled", "ejections")

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._troubled: set[str] = set()
        """Those that may have to be left alone."""
        self.ejections = 0
        """How often a replica was ejected."""

    @property
    def fine(self) -> bool:
        """Whether every replica may be used, for all that is known. Costs nothing to ask."""
        return not self._troubled

    def choose_from(self, ready: Sequence[AnyWatched], now_s: float) -> Sequence[AnyWatched]:
        """Those of `ready` that requests should go to; at least one where there is any. Where a
        replica's trial is due, it alone, so that it is tried.
        """
        if not self._troubled or len(ready) < 2:
            return ready
        good, avoided = [], []
        for replica in ready:
            record = self._records.get(replica.id) if replica.id in self._troubled else None
            if record is None:
                good.append(replica)
            elif record.ejected:
                if record.ejected_until_s <= now_s and self._may_try(record, now_s):
                    return [replica]
            elif record.avoid_until_s > now_s:
                avoided.append(replica)
            else:
                self._troubled.discard(replica.id)
                good.append(replica)
        return good or avoided or ready

    def note_sent(self, replica_id: str, now_s: float) -> None:
        """A request went to a replica. Only a replica on trial is concerned."""
        record = self._records.get(replica_id)
        if record is not None and record.ejected and record.ejected_until_s <= now_s:
            record.trial_s = now_s

    def note_unknown(self, replica_id: str) -> None:
        """A request ended without telling anything, because its client went away, say."""
        record = self._records.get(replica_id)
        if record is not None:
            record.trial_s = 0.0

    def note_success(self, replica_id: str, now_s: float) -> bool:
        """A replica answered; returns whether that brought it back."""
        record = self._record(replica_id, now_s)
        record.good += 1
        record.in_row = 0
        if not record.ejected:
            return False
        if record.ejected_until_s > now_s and not record.trial_s:
            return False  # an answer to a request of before
        record.ejected_until_s = record.trial_s = record.avoid_until_s = 0.0
        record.bad = 0.0
        record.back_s = now_s
        self._troubled.discard(replica_id)
        return True

    def note_failure(self, replica_id: str, ready: Collection[str], now_s: float) -> bool:
        """A replica failed a request; returns whether it was ejected for it. `ready` are the ids
        of the replicas that are ready.
        """
        record = self._record(replica_id, now_s)
        record.bad += 1
        record.in_row += 1
        record.avoid_until_s = now_s + AVOID_S
        if not record.ejected and now_s - record.back_s > FORGIVE_S:
            record.ejections = 0
        self._troubled.add(replica_id)
        if record.ejected:
            if record.trial_s:
                self._eject(record, now_s)
                return True
            return False
        if record.in_row < CONSECUTIVE and not self._stands_out(replica_id, record, now_s):
            return False
        if not self._may_eject(replica_id, ready):
            return False
        self._eject(record, now_s)
        return True

    def left_alone(self, ids: Collection[str]) -> int:
        """How many of `ids` are ejected now."""
        if not self._troubled:
            return 0
        return sum(1 for i in self._troubled if i in ids and self._records[i].ejected)

    def is_ejected(self, replica_id: str) -> bool:
        """Whether a replica is ejected or on trial."""
        record = self._records.get(replica_id)
        return record is not None and record.ejected

    def keep_only(self, ids: Collection[str]) -> None:
        """Forget replicas that are gone."""
        for gone in [known for known in self._records if known not in ids]:
            del self._records[gone]
            self._troubled.discard(gone)

    def forget(self, replica_id: str) -> None:
        """Forget what is known of a replica: another one has its name now."""
        self._records.pop(replica_id, None)
        self._troubled.discard(replica_id)

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
        record.in_row = 0
        self.ejections += 1

    def _stands_out(self, replica_id: str, record: _Record, now_s: float) -> bool:
        if record.good + record.bad < LEAST_SEEN or record.rate < LEAST_RATE:
            return False
        good = bad = 0.0
        for other_id, other in self._records.items():
            if other_id != replica_id:
                other.decay(now_s)
                good += other.good
                bad += other.bad
        if good + bad < LEAST_SEEN:
            return False
        return record.rate >= TIMES_FLEET * bad / (good + bad)
