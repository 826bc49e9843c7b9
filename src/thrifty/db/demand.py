"""What is asked of each version, as gateway workers count it where requests arrive.

Each worker has one row for each version. Totals only grow; a worker that starts anew, or a version
that comes back, begins at zero under another `since_s`, so that whoever adds differences up can
never see a negative one. The autoscaler (`control.autoscale`) reads these rows.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

import msgspec
from sqlalchemy import delete, insert, select, update

from thrifty.db.database import Database
from thrifty.db.tables import demand

KEEP_S = 3600.0
"""Rows of workers that ended without removing theirs are deleted after this long."""
FRESH_S = 10.0
"""Older rows are those of workers that are gone."""
BUCKETS = 40
SMALLEST_S = 0.001
PER_DOUBLING = 2
"""Histograms have two buckets for each doubling, the first up to 1 ms, the last without a bound."""
LARGEST_S = SMALLEST_S * 2.0 ** ((BUCKETS - 1) / PER_DOUBLING)


class Figures(msgspec.Struct):
    """What one worker counted of one version. Times are durations in seconds."""

    since_s: float = 0.0
    """When counting began, in seconds since 1970."""
    writes: int = 0
    """How often the row was written. It tells a row that is kept up to date from a stale one
    without comparing clocks."""

    counted_s: float = 0.0
    """How much time the totals cover."""

    # Totals
    arrivals: int = 0
    """Requests that need a replica: those that the exact cache or a shared generation does not
    answer. Counted before they wait, and once, however often they are sent. Lines of batches take
    what others leave, and are not counted."""
    answered: int = 0
    """Answers of warmed-up replicas; the sums below are over these, lines of batches included."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    held_s: float = 0.0
    """Time from when an answer's request was sent to its replica until the last byte."""
    streamed: int = 0
    """Those of the answers whose first token could be timed."""
    begin_s: float = 0.0
    """Time from sending until the first token, over `streamed`."""
    timed: int = 0
    """Those of the answers whose further tokens could be timed."""
    token_s: float = 0.0
    """Mean time for each further token, over `timed`."""
    begin_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    """Histogram of the times in `begin_s`."""
    token_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    """Histogram of the times in `token_s`."""
    ttft_buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    """Histogram of the times from arrival to the first token, waiting included, of all streams that
    began."""
    busy_s: float = 0.0
    """The integral of the number of requests at replicas over time."""

    # The state at the time of writing
    held: int = 0
    """Requests that wait because no replica is ready."""
    queued: int = 0
    """Requests that wait for a slot."""
    in_flight: int = 0
    """Requests at replicas."""
    work: dict[str, float] = msgspec.field(default_factory=dict)
    """By replica that is not idle, about how many tokens are left to say to requests at it."""


class DemandRow(msgspec.Struct, frozen=True):
    """The row of one worker and version."""

    worker: str
    deployment: str
    version: str
    """The version's label."""
    figures: Figures


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Figures).decode


def find_bucket(seconds: float) -> int:
    """The bucket of a histogram that a time belongs to."""
    if seconds <= SMALLEST_S:
        return 0
    if seconds >= LARGEST_S:
        return BUCKETS - 1
    return math.ceil(PER_DOUBLING * math.log2(seconds / SMALLEST_S))


def bucket_limit_s(bucket: int) -> float:
    """The largest time in a bucket; the last bucket has larger ones, too."""
    return SMALLEST_S * float(2 ** (bucket / PER_DOUBLING))


def encode_figures(figures: Figures) -> str:
    """The figures as `save_demand` takes them."""
    return _encode(figures).decode()


def save_demand(database: Database, worker: str, rows: Mapping[tuple[str, str], str]) -> None:
    """Write the encoded figures of one worker, by deployment and label. Raises `DatabaseError`."""
    now_s = time.time()
    with database.begin() as connection:
        for (deployment, version), figures in rows.items():
            where = (
                (demand.c.worker == worker)
                & (demand.c.deployment == deployment)
                & (demand.c.version == version)
            )
            values = {"updated_s": now_s, "figures": figures}
            if connection.execute(update(demand).where(where).values(values)).rowcount == 0:
                key = {"worker": worker, "deployment": deployment, "version": version}
                connection.execute(insert(demand).values({**key, **values}))
                connection.execute(delete(demand).where(demand.c.updated_s < now_s - KEEP_S))


def remove_demand(database: Database, worker: str) -> None:
    """Delete the rows of a worker that ends. Raises `DatabaseError`."""
    with database.begin() as connection:
        connection.execute(delete(demand).where(demand.c.worker == worker))


def read_held(database: Database) -> dict[tuple[str, str], int]:
    """How many requests wait because no replica is ready, by deployment and label, as workers that
    still report say. Raises `DatabaseError`.
    """
    fresh = demand.c.updated_s > time.time() - FRESH_S
    query = select(demand.c.deployment, demand.c.version, demand.c.figures).where(fresh)
    with database.begin() as connection:
        rows = connection.execute(query).all()
    held: Counter[tuple[str, str]] = Counter()
    for deployment, version, figures in rows:
        held[deployment, version] += _decode(figures).held
    return dict(held)


def read_demand(database: Database, *, fresh: bool = False) -> list[DemandRow]:
    """All rows, those of workers that are gone included, or with `fresh` those of workers that still
    report. Raises `DatabaseError`.
    """
    query = select(demand.c.worker, demand.c.deployment, demand.c.version, demand.c.figures)
    if fresh:
        query = query.where(demand.c.updated_s > time.time() - FRESH_S)
    with database.begin() as connection:
        rows = connection.execute(query).all()
    return [DemandRow(row[0], row[1], row[2], _decode(row[3])) for row in rows]
