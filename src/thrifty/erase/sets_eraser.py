"""One person's rows in built data sets, and in builds that may go on."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrifty.artifacts.disk import try_lock_file
from thrifty.data.built import SPLITS, erase_rows, list_sets
from thrifty.db.improve import APPROVE, RUNNING, lease_name, read_runs
from thrifty.db.leases import is_held
from thrifty.erase.files_eraser import find_models, is_row_of
from thrifty.erase.person import Work
from thrifty.errors import ThriftyError
from thrifty.files import write_atomically

WITHOUT_ROWS = (APPROVE, "release")
"""Steps of the loop that hold no rows."""
MOST_RUNS = 1000
BUILD = re.compile(r"(-[0-9a-f]{16}|\.answers|\.taught)\Z")
"""How folders of unfinished builds end, after the set's name."""


def erase_set_rows(work: Work) -> int:
    """Take the person's rows out of every built set; name the sets, and the models trained on
    them. Builds that may go on begin anew.
    """
    removed = 0
    for run in read_runs(work.database, limit=MOST_RUNS):
        held = run.is_active and is_held(work.database, lease_name(run.deployment))
        working = [one.step for one in run.steps.values() if one.state == RUNNING]
        for step in set(working).difference(WITHOUT_ROWS) if held else ():
            work.left.append(
                f"the loop of {run.deployment!r} is at its step {step!r}, and may hold the person's "
                f"rows; erase again once that has ended (thrifty improve status {run.deployment})"
            )
    _erase_builds(work)
    for built in list_sets(work.home.datasets):
        try:
            gone = erase_rows(built, lambda row: is_row_of(work, row), time.time())
        except (OSError, ThriftyError) as error:
            work.left.append(f"the data set {built.label} cannot be rewritten: {error}")
            continue
        _erase_samples(work, built.folder)
        if gone:
            removed += gone
            work.notes.append(f"{gone} rows were taken out of the data set {built.label}")
            named = f'"{built.label}"'
            work.notes += [
                f"the model {label} was trained on the data set {built.label}"
                for label in find_models(work, _names(named))
            ]
    return removed


def _erase_builds(work: Work) -> None:
    """Remove what builds that did not end have read, and the answers of models about it."""
    folder = work.home.datasets / ".work"
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        name = BUILD.sub("", path.name)
        if name != path.name:
            found.setdefault(name, []).append(path)
    for name, paths in found.items():
        with try_lock_file(folder / f"{name}.lock") as free:
            if free:
                for path in paths:
                    shutil.rmtree(path, ignore_errors=True)
            else:
                work.left.append(
                    f"the data set {name} is being built, and may get the person's rows; erase again "
                    "once that has ended"
                )


def erase_unfinished_trainings(work: Work) -> int:
    """Remove the trainings on rows that did not end: their rows are tokens, which do not tell whose
    they are. The same command begins such a training anew.
    """
    removed = 0
    # Those of trials lie deeper; those of a killed process have other names while they are written.
    rows = work.home.trainings.rglob("*.jsonl*")
    names = {path.relative_to(work.home.trainings).parts[0] for path in rows}
    for folder in (work.home.trainings / name for name in sorted(names)):
        with try_lock_file(folder / "lock") as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            else:
                work.left.append(
                    f"the training in {folder} is running, and may be on the person's rows; "
                    "erase again once it has ended"
                )
    return removed


def _names(label: str) -> Callable[[str], bool]:
    return lambda recipe: label in recipe


def _erase_samples(work: Work, folder: Path) -> None:
    """Take the person's texts out of a report's samples, and its page, which is made anew when it is
    asked for.
    """
    path = folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if not _is_sample_of(work, json.loads(line))]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept), mode=0o600)
        (folder / "report.html").unlink(missing_ok=True)


def _is_sample_of(work: Work, sample: dict[str, Any]) -> bool:
    names = ("provenance", "kept_provenance")
    return any(is_row_of(work, {"provenance": sample.get(name)}) for name in names)


def collect_set_rows(work: Work) -> list[Any]:
    """The person's rows in built sets."""
    return [
        {"set": built.label, "split": split, **row}
        for built in list_sets(work.home.datasets)
        for split in SPLITS
        for row in built.read(split)
        if is_row_of(work, row)
    ]
