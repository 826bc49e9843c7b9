"""Whether a stored model passed its gate, as it is recorded with the model.

A model without a verdict of its own has that of the model it was made from, so that a failed
checkpoint is not served in another form.
"""

from __future__ import annotations

from thrifty.artifacts.artifact import NamedVersion
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.store import Store

GATE = "gate"
"""The kind of the measurement."""


def find_verdict(store: Store, version: NamedVersion) -> Measurement | None:
    """The newest verdict on a model, or else on the nearest model in its lineage that has one."""
    seen: set[str] = set()
    waiting = [version.artifact]
    while waiting:
        artifact_id = waiting.pop(0)
        if artifact_id in seen:
            continue
        seen.add(artifact_id)
        found = [one for one in store.read_measurements(artifact_id) if one.kind == GATE]
        if found:
            return max(found, key=lambda one: one.measured)
        waiting += [
            parent.id
            for known in store.versions()
            if known.artifact == artifact_id
            for parent in known.lineage.parents
        ]
    return None


def find_failure(store: Store, version: NamedVersion) -> str | None:
    """Why a model must not be served unless that is accepted; None if nothing speaks against it."""
    verdict = find_verdict(store, version)
    return None if verdict is None or verdict.values["passed"] else str(verdict.values["message"])
