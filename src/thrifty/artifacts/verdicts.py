"""Whether a stored model passed its gate, as it is recorded with the model.

A model without a verdict of its own has that of the model it was made from, so that a failed
checkpoint is not served in another form.
"""

from __future__ import annotations

from thrifty.artifacts.artifact import NamedVersion
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.store import Store

GATE = "gate"
"""The kind of the measurement."""


def find_verdict(store: Store, version: NamedVersion) -> Measurement | None:
    """The newest verdict on a model, or else on the nearest model in its lineage that has one."""
    for one in walk_lineage(store, version):
        # A parent's verdict stays where its name was removed.
        for artifact_id in (one.artifact, *(parent.id for parent in one.lineage.parents)):
            found = [m for m in store.read_measurements(artifact_id) if m.kind == GATE]
            if found:
                return max(found, key=lambda verdict: verdict.measured)
    return None


def find_failure(store: Store, version: NamedVersion) -> str | None:
    """Why a model must not be served unless that is accepted; None if nothing speaks against it."""
    verdict = find_verdict(store, version)
    return None if verdict is None or verdict.values["passed"] else str(verdict.values["message"])
