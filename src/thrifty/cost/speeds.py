"""How much faster compressed versions are than the models they were made from, as measured here."""

from __future__ import annotations

import logging

from sqlalchemy import select

from thrifty.artifacts import Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.measurements import Measurement
from thrifty.cost.savings import Speed
from thrifty.db import Database
from thrifty.db.tables import versions
from thrifty.errors import ArtifactError, IntegrityError

log = logging.getLogger(__name__)

KIND = "speed"
"""What `thrifty compare` records."""


def find_speeds(database: Database, store: Store) -> dict[tuple[str, str], Speed]:
    """By deployment and label, the measured speed of each version beside that of the first model in
    its lineage that was measured under the same conditions. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        rows = connection.execute(
            select(versions.c.deployment, versions.c.label, versions.c.artifact)
        ).all()
    found = {}
    for deployment, label, artifact in rows:
        try:
            speed = _find_speed(store, artifact) if artifact is not None else None
        except (ArtifactError, IntegrityError) as error:
            log.warning("the speed of %s %s is not known: %s", deployment, label, error)
            continue
        if speed is not None:
            found[deployment, label] = speed
    return found


def _find_speed(store: Store, artifact: str) -> Speed | None:
    own = next((one for one in store.versions() if one.artifact == artifact), None)
    if own is None:
        return None
    measured = [
        (version.label, one)
        for version in walk_lineage(store, own)
        for one in store.read_measurements(version.artifact)
        if one.kind == KIND and one.values.get("tokens_per_s")
    ]
    if not measured:
        return None
    name, newest = measured[0]
    for parent, one in reversed(measured):
        if parent != name and one.conditions == newest.conditions:
            return _compare(name, newest, parent, one)
    return None


def _compare(name: str, one: Measurement, parent: str, other: Measurement) -> Speed | None:
    """Both speeds at the most streams at which both were measured."""
    fast, slow = one.values["tokens_per_s"], other.values["tokens_per_s"]
    both = sorted(set(fast) & set(slow), key=int)
    if not both or not slow[both[-1]]:
        return None
    return Speed(name, parent, float(fast[both[-1]]), float(slow[both[-1]]), both[-1])
