"""Measurements of a stored model, made after the model, and their conditions.

    figures/<artifact id>.json      a list of measurements, replaced as a whole

Conditions are the text's checksum, the processor and its features, the engine and so on.
Measurements under different conditions stand side by side and are never put into one column.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from thrifty.errors import IntegrityError
from thrifty.files import write_atomically
from thrifty.home import make_private_folder
from thrifty.version import __version__


class Measurement(msgspec.Struct, frozen=True):
    """Values of one kind that were measured together."""

    kind: str
    """`quality`, `embeddings`, `task`, `answers`, `speed`, `candidate` or `gate`."""
    conditions: dict[str, Any]
    """What the values depend on. Only measurements with equal conditions may be compared."""
    values: dict[str, Any]
    measured: str = ""
    """The time, as ISO 8601."""
    made_by: str = ""


def find_measurement(
    measured: tuple[Measurement, ...], kind: str, conditions: Mapping[str, Any]
) -> Measurement | None:
    """The measurement of that kind under exactly these conditions, if there is one."""
    return next((m for m in measured if m.kind == kind and m.conditions == conditions), None)


def read_measurements(folder: Path, artifact_id: str) -> tuple[Measurement, ...]:
    """All measurements of an artifact, oldest first. Raises `IntegrityError`."""
    path = folder / f"{artifact_id}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Measurement, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(
            f"{path} is damaged: {error}; delete it, and the model will be measured again"
        ) from None


def write_measurement(
    folder: Path, artifact_id: str, kind: str, conditions: dict[str, Any], values: dict[str, Any]
) -> Measurement:
    """Record values, replacing earlier ones under the same conditions. The caller holds a lock."""
    made = Measurement(
        kind, conditions, values, datetime.now(UTC).isoformat(timespec="seconds"),
        f"thrifty {__version__}",
    )  # fmt: skip
    # Return what will be read back: JSON has only string keys, and lists instead of tuples.
    made = msgspec.json.decode(msgspec.json.encode(made), type=Measurement)
    kept = [
        known
        for known in read_measurements(folder, artifact_id)
        if (known.kind, known.conditions) != (made.kind, made.conditions)
    ]
    _write(folder, artifact_id, [*kept, made])
    return made


def add_measurements(folder: Path, artifact_id: str, measured: tuple[Measurement, ...]) -> None:
    """Add measurements that were made elsewhere. Those from here stay under the same conditions.

    The caller holds a lock.
    """
    known = read_measurements(folder, artifact_id)
    new = [
        one
        for one in measured
        if not any((had.kind, had.conditions) == (one.kind, one.conditions) for had in known)
    ]
    if new:
        _write(folder, artifact_id, [*known, *new])


def _write(folder: Path, artifact_id: str, measured: list[Measurement]) -> None:
    make_private_folder(folder)
    text = msgspec.json.format(msgspec.json.encode(measured))
    write_atomically(folder / f"{artifact_id}.json", text)
