"""Whether a stored model passed its gates, as it is recorded with the model.

A failure holds for what is made from the model, too, so that a failed checkpoint is not served in
another form. A later verdict, or one on what was made from the model, clears it only where it could
have failed for the same reason: a bound on drops beside the same reference or one that this was
made from, on all that failed; and the comparison with a version that serves (`thrifty gate`) in a
newer comparison.
"""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.artifacts.artifact import NamedVersion
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.store import Store

GATE = "gate"
"""The kind of the measurement."""
REFERENCE, AGAINST = "reference", "against"
"""The condition that says beside which artifact a bound on drops, or `thrifty gate`, judged."""


def find_verdict(store: Store, version: NamedVersion) -> Measurement | None:
    """The verdict that counts for a model: a failure that nothing has cleared, or else the newest
    on the model, or else on the nearest model in its lineage that has one.
    """
    passes: list[Measurement] = []
    derived: set[str] = set()
    for artifact_id in _list_lineage(store, version):
        found = [one for one in store.read_measurements(artifact_id) if one.kind == GATE]
        # Of those in the same second, the last in the file is the newest.
        for verdict in sorted(found, key=lambda one: one.measured)[::-1]:
            if verdict.values["passed"]:
                passes.append(verdict)
            # That a model is worse than what was made from it says nothing against the latter.
            elif _find_beside(verdict) not in derived and not any(
                _clears(store, one, verdict) for one in passes
            ):
                return verdict
        derived.add(artifact_id)
    return passes[0] if passes else None


def find_failure(store: Store, version: NamedVersion) -> str | None:
    """Why a model must not be served unless that is accepted; None if nothing speaks against it."""
    verdict = find_verdict(store, version)
    return None if verdict is None or verdict.values["passed"] else str(verdict.values["message"])


def _list_lineage(store: Store, version: NamedVersion) -> Iterator[str]:
    """The artifacts of a model and of those it was made from, nearest first."""
    seen: set[str] = set()
    for one in walk_lineage(store, version):
        # A parent's verdict stays where its name was removed.
        for artifact_id in (one.artifact, *(parent.id for parent in one.lineage.parents[:1])):
            if artifact_id not in seen:
                seen.add(artifact_id)
                yield artifact_id


def _find_beside(verdict: Measurement) -> str:
    """The artifact beside which a verdict was found."""
    found = verdict.conditions.get(REFERENCE, verdict.conditions.get(AGAINST, ""))
    return str(found)


def _clears(store: Store, passed: Measurement, failure: Measurement) -> bool:
    """Whether a newer or nearer pass could have failed for the same reason."""
    if AGAINST in failure.conditions:
        return AGAINST in passed.conditions
    if REFERENCE not in passed.conditions:
        return False
    # Earlier releases recorded no `judged`.
    judged = passed.values.get("judged", passed.values.get("drops", ()))
    if not set(failure.values.get("failed", ())) <= set(judged):
        return False
    reference = _find_beside(failure)
    named = next((one for one in store.versions() if one.artifact == reference), None)
    earlier = {reference, *(_list_lineage(store, named) if named is not None else ())}
    return _find_beside(passed) in earlier
