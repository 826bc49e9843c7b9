"""How long things take here, from what was measured here before.

Nothing is guessed: where nothing like it was measured on this processor, the time is not known, and
the reason is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from statistics import median

from thrifty.artifacts import Store
from thrifty.artifacts.measurements import Measurement
from thrifty.engines.machine import Machine
from thrifty.errors import ArtifactError
from thrifty.fleet.base import ObservedReplica

PREPARE = "prepare"
"""The kind of measurement that says how long a preparation took, in `seconds`."""
LOAD = "load"
"""The kind of measurement that says, as `load_s`, how long until a replica was ready."""
SPEED = "speed"
"""The kind of measurement of speed benchmarks, which has `load_s`, too."""
_LEAST_LOAD_S = 0.1
"""A replica that was ready sooner had been adopted, not started."""

Estimate = tuple[float | None, str]
"""Seconds, and what they rest on, or why they are not known."""


def record_times(
    store: Store, machine: Machine, kind: str, artifact: str, engine: str, values: dict[str, float]
) -> None:
    """Keep how long something took here, for later estimates. Raises `ArtifactError`."""
    conditions = {"engine": engine, "processor": machine.processor}
    store.record_measurement(artifact, kind, conditions, dict(values))


def record_load_times(store: Store, machine: Machine, replicas: Sequence[ObservedReplica]) -> None:
    """Keep how long replicas took until they were ready, once for each model. A store that cannot be
    written to is left alone.
    """
    for one in replicas:
        artifact, seconds = one.row.artifact, one.ready_after_s
        if artifact is None or seconds < _LEAST_LOAD_S:
            continue
        with contextlib.suppress(ArtifactError):
            if not any(known.kind == LOAD for known in store.read_measurements(artifact)):
                values = {"load_s": round(seconds, 3)}
                record_times(store, machine, LOAD, artifact, one.row.engine, values)


class Estimates:
    """Times on one machine, by the measurements of one store."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self._store = store
        self._machine = machine

    def prepare_s(self, engine: str, size_bytes: int | None) -> Estimate:
        """How long an engine takes to prepare a model of that size."""
        rates = [
            one.values["seconds"] / size
            for size, one in self._measured(PREPARE, engine)
            if one.values.get("seconds") and size
        ]
        if not rates:
            return None, f"how long it takes is not known: nothing was prepared for {engine} here"
        if size_bytes is None:
            return None, "how long it takes is not known: its size is not"
        return round(median(rates) * size_bytes, 1), _say("preparation", len(rates))

    def load_s(self, artifact: str, engine: str) -> Estimate:
        """How long until a replica of a model is ready."""
        with contextlib.suppress(ArtifactError):
            for name in self._lineage(artifact):
                for one in self._store.read_measurements(name):
                    if self._is_here(one, engine) and "load_s" in one.values:
                        return round(one.values["load_s"], 1), "as measured here"
        rates = [
            one.values["load_s"] / size
            for kind in (LOAD, SPEED)
            for size, one in self._measured(kind, engine)
            if "load_s" in one.values and size
        ]
        if not rates:
            return None, "how long it loads is not known: nothing like it was measured here"
        size = self._store.load(artifact).size_bytes
        return round(median(rates) * size, 1), _say("measured start", len(rates))

    def _lineage(self, artifact: str) -> Iterator[str]:
        """The model, and the checkpoint that it was prepared from."""
        yield artifact
        for version in self._store.versions():
            if version.artifact == artifact:
                yield from (parent.id for parent in version.lineage.parents)

    def _measured(self, kind: str, engine: str) -> Iterator[tuple[int, Measurement]]:
        """What was measured here of any model, with the bytes that it was measured on."""
        for version in self._store.versions():
            with contextlib.suppress(ArtifactError):
                for one in self._store.read_measurements(version.artifact):
                    if one.kind == kind and self._is_here(one, engine):
                        size = one.values.get("size_bytes")
                        yield int(size or self._store.load(version.artifact).size_bytes), one

    def _is_here(self, one: Measurement, engine: str) -> bool:
        conditions = one.conditions
        return (
            str(conditions.get("engine", "")).partition(" ")[0] == engine
            and conditions.get("processor") == self._machine.processor
        )


def _say(what: str, count: int) -> str:
    return f"estimated by its size from {count} {what}{'s' if count > 1 else ''} here"
