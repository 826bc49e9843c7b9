"""What was measured of a stored model after it was made, and on what.

    figures/<artifact id>.json      a list of measurements, replaced whole

A measurement says under which conditions it was made: the text's checksum, the processor, the engine.
Measurements under unlike conditions stand beside one another and are never put into one column.
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
    """Figures of one kind, made at once."""

    kind: str
    """`quality`, `embeddings`, `task` or `speed`."""
    conditions: dict[str, Any]
    """What they were measured on and against. Only figures with equal ones may be compared."""
    values: dict[str, Any]
    measured: str = ""
    """When, as ISO 8601."""
    made_by: str = ""


def find_measurement(
    measured: tuple[Measurement, ...], kind: str, conditions: Mapping[str, Any]
) -> Measurement | None:
    """The measurement of that kind under these very conditions, if there is one."""
    return next((m for m in measured if m.kind == kind and m.conditions == conditions), None)


def read_measurements(folder: Path, artifact_id: str) -> tuple[Measurement, ...]:
    """All that were recorded of an artifact, the oldest first. Raises `IntegrityError`."""
    path = folder / f"{artifact_id}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Measurement, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(
            f"{path} is damaged: {error}; delete it, and its figures are measured anew"
        ) from None


def write_measurement(
    folder: Path, artifact_id: str, kind: str, conditions: dict[str, Any], values: dict[str, Any]
) -> Measurement:
    """Record figures, in place of earlier ones under the same conditions. The caller holds a lock."""
    made = Measurement(
        kind, conditions, values, datetime.now(UTC).isoformat(timespec="seconds"),
        f"thrifty {__version__}",
    )  # fmt: skip
    # As they will be read: keys of JSON are text, tuples are lists.
    made = msgspec.json.decode(msgspec.json.encode(made), type=Measurement)
    kept = [
        known
        for known in read_measurements(folder, artifact_id)
        if (known.kind, known.conditions) != (made.kind, made.conditions)
    ]
    make_private_folder(folder)
    text = msgspec.json.format(msgspec.json.encode([*kept, made]))
    write_atomically(folder / f"{artifact_id}.json", text)
    return made
