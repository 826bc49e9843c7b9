"""Checkpoints of trainings in minutes that have ended, which `--resume` goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

KEPT = 2
"""So many are kept, the last ones: each is several times as large as its model."""


def remove_ended(trainings: Path, *, keep: int) -> tuple[int, int]:
    """Remove the trainings in minutes that have ended, all but the last `keep`; returns how many
    and how many bytes they had. Trainings that may still be worked on stay.
    """
    ended = sorted(
        (path for path in trainings.glob("*/spent.json") if _has_ended(path)),
        key=lambda path: path.stat().st_mtime,
    )
    removed = [path.parent for path in ended[: max(0, len(ended) - keep)]]
    size = sum(file.stat().st_size for folder in removed for file in folder.iterdir())
    for folder in removed:
        shutil.rmtree(folder, ignore_errors=True)
    return len(removed), size


def _has_ended(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["ended"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
