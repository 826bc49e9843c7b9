"""Builds a set: the order of its stages, what is kept for a build that goes on, and the result.

Everything before the rows are written depends on the recipe, the sources and the tokenizer, whose
checksums name the folder of the work (`datasets/.work/NAME-...`). A build that is killed finds
there what was finished, and comes to the same bytes. The folder goes when the set is published.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.curate.augment_stage import augment_rows, estimate_rows
from thrifty.curate.duplicates import find_exact, find_near
from thrifty.curate.evaluation_sets import EvaluationSet, digest_sets, find_evaluation_sets
from thrifty.curate.leaks import make_index, save_index
from thrifty.curate.piece import STAGES, Settings
from thrifty.curate.publish import Outcome, write_set
from thrifty.curate.quality import digest_table
from thrifty.curate.ray_pieces import make_pieces_on_ray
from thrifty.curate.recipe import Recipe, load_recipe, parse_recipe
from thrifty.curate.request_log import write_snapshot
from thrifty.curate.rows import I64, Rows
from thrifty.curate.select import balance_rows, mix_rows, split_rows
from thrifty.curate.sources import (
    PIECE_BYTES,
    SUFFIXES,
    Piece,
    SourceFile,
    check_unchanged,
    cut_pieces,
    describe_file,
    find_files,
    read_plan,
    write_plan,
)
from thrifty.curate.vectors import (
    RowVectors,
    embed_rows,
    embed_texts,
    find_alike,
    find_meant,
    make_opener,
)
from thrifty.curate.workers import describe_disk_fault, make_pieces
from thrifty.data import fetch_set
from thrifty.data.built import BuiltSet, check_name
from thrifty.data.token_lengths import identify
from thrifty.db import Database, open_database
from thrifty.db.secrets import ID_SECRET, read_secret
from thrifty.db.subjects import SECRET
from thrifty.errors import DataError, LeakError, NoRowsError
from thrifty.evaluate.embedder import Embedder
from thrifty.fleet.controller_note import find_database_url
from thrifty.home import Home, find_home, make_private_folder
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.version import __version__

SHOWN_LEAKS = 20
OnNote = Callable[[str], None]


@dataclass
class _Plan:
    """What is read, and where the work is."""

    recipe: Recipe
    name: str
    folder: Path
    """The recipe's."""
    work: Path
    files: list[SourceFile]
    pieces: list[Piece]
    tokenizer: dict[str, str] | None
    sets: list[EvaluationSet]
    rules: dict[str, str]
    """The SHA-256 of each table of rules of quality."""


def build_data(
    recipe: Recipe | Path | str | dict[str, Any],
    name: str,
    *,
    home: Home | None = None,
    workers: int = 1,
    ray: str | None = None,
    restart: bool = False,
    piece_bytes: int = PIECE_BYTES,
    on_progress: OnProgress = ignore_progress,
    on_note: OnNote = lambda text: None,
) -> BuiltSet:
    """Build a data set by a recipe (its file, or what it would say) and register it as the next
    version of `name`; blocks. If the newest version has the same rows by the same recipe, that is
    returned.

    `workers` is the number of processes, and `piece_bytes` how much of a file one of them takes at
    a time. With `ray`, the address of a cluster's head, its nodes do what can be done of a row by
    itself. The result does not depend on these. What a killed build had finished is used, unless
    `restart`. `on_note` is told what people should read, such as what a model is asked. Raises
    `SpecError`, `LeakError` (a row holds what models are judged by) and other kinds of
    `ThriftyError`.
    """
    with _open_build(recipe, name, home, workers, restart, piece_bytes, on_progress, ray) as build:
        plan, rows, outcome, home, store = build
        outcome.made = augment_rows(
            plan.recipe, name, plan.work, rows, outcome.split, home, store, on_progress, on_note
        )
        built = write_set(
            plan.recipe, name, home.datasets, plan.work, rows, outcome, plan.files, plan.tokenizer,
            plan.sets, plan.rules, on_progress,
        )  # fmt: skip
    shutil.rmtree(plan.work, ignore_errors=True)
    return built


def estimate_augmentation(
    recipe: Recipe | Path | str | dict[str, Any],
    name: str,
    *,
    home: Home | None = None,
    workers: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """What the model of `augment` would be asked: `{"requests", "tokens_read", "tokens_written",
    "cost"}`. Everything before it is done, and kept for the build; nothing is asked. Blocks. Raises
    as `build_data`.
    """
    with _open_build(recipe, name, home, workers, False, PIECE_BYTES, on_progress) as build:
        plan, rows, outcome, _, _ = build
        return estimate_rows(plan.recipe, plan.work, rows, outcome.split)


@contextlib.contextmanager
def _open_build(
    recipe: Recipe | Path | str | dict[str, Any], name: str, home: Home | None, workers: int,
    restart: bool, piece_bytes: int, on_progress: OnProgress, ray: str | None = None,
) -> Iterator[tuple[_Plan, Rows, Outcome, Home, Store]]:  # fmt: skip
    """A build up to the rows that stay, for as long as the context lasts."""
    home = home or find_home()
    check_name(name)
    folder = Path.cwd()
    if isinstance(recipe, str | Path):
        folder = Path(recipe).expanduser().absolute().parent
        recipe = load_recipe(Path(recipe).expanduser())
    elif isinstance(recipe, dict):
        recipe = parse_recipe(recipe)
    store = Store(home.models)
    database = open_database(find_database_url(home), migrate=False, create=True)
    try:
        with _lock(home, name):
            try:
                plan = _make_plan(
                    recipe, name, folder, home, store, database, restart, piece_bytes, on_progress
                )
                secrets = (read_secret(database, ID_SECRET), read_secret(database, SECRET))
                _make_pieces(plan, secrets, workers, ray, on_progress)
                for file in plan.files:
                    check_unchanged(file)
                rows = Rows(plan.work, len(plan.pieces))
                try:
                    yield plan, rows, _decide(plan, rows, store, on_progress), home, store
                finally:
                    rows.close()
            except OSError as error:
                raise describe_disk_fault(error) from None
    finally:
        database.close()


@contextlib.contextmanager
def _lock(home: Home, name: str) -> Iterator[None]:
    """One build of a name at a time. Raises `DataError`."""
    folder = make_private_folder(home.datasets / ".work")
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{name} is being built by another process; wait for it") from None
        yield


# The plan


def _make_plan(
    recipe: Recipe, name: str, folder: Path, home: Home, store: Store, database: Database,
    restart: bool, piece_bytes: int, on_progress: OnProgress,
) -> _Plan:  # fmt: skip
    on_progress(Progress("check", 0, 0, "files"))
    sets = find_evaluation_sets(home, store, recipe, folder, on_progress)
    rules = {name: digest_table(name, folder) for name in recipe.clean.quality}
    files: list[SourceFile] = []
    for number, source in enumerate(recipe.sources):
        if source.path is not None:
            files += find_files(source, number, folder)
        elif source.set is not None:
            path = fetch_set(source.set, home.data, store, on_progress)
            files.append(describe_file(path, source, number))
    with _tokenizer_of(recipe, home, store, on_progress) as (tokenizer, tokenizer_folder):
        key = _digest(recipe, files, tokenizer, sets, rules)
        work = home.datasets / ".work" / f"{name}-{key[:16]}"
        for other in work.parent.glob(f"{name}-{'[0-9a-f]' * 16}"):
            if other != work or restart:
                shutil.rmtree(other)
        known = work / "plan.json"
        if known.exists():
            old_files, pieces = read_plan(json.loads(known.read_text()))
            # A file that was written anew with the same bytes has another time.
            now = {(one.source, one.path): one for one in files}
            same = [now.get((one.source, one.path), one) for one in old_files]
            return _Plan(recipe, name, folder, work, same, pieces, tokenizer, sets, rules)
        make_private_folder(work)
        if tokenizer_folder is not None:
            shutil.copytree(tokenizer_folder, work / "tokenizer", dirs_exist_ok=True)
    for number, source in enumerate(recipe.sources):
        if source.log is not None:
            path = work / f"log-{number}.jsonl"
            write_snapshot(database, source, recipe.kind, path)
            files.append(describe_file(path, source, number))
    files.sort(key=lambda one: one.source)
    _check_formats(files)
    pieces = cut_pieces(files, piece_bytes)
    if sets:
        save_index(make_index(item for one in sets for item in one.read()), work / "leaks.npz")
    part = known.with_suffix(".part")
    part.write_text(write_plan(files, pieces), encoding="utf-8")
    part.rename(known)
    return _Plan(recipe, name, folder, work, files, pieces, tokenizer, sets, rules)


def _check_formats(files: list[SourceFile]) -> None:
    for one in files:
        if one.format not in SUFFIXES.values():
            raise DataError(f"{one.path}: the format {one.format!r} cannot be read")


def _digest(
    recipe: Recipe, files: list[SourceFile], tokenizer: dict[str, str] | None,
    sets: list[EvaluationSet], rules: dict[str, str],
) -> str:  # fmt: skip
    facts = [
        __version__, recipe.model_dump_json(), [[one.path, one.sha256] for one in files],
        tokenizer, digest_sets(sets), rules,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextlib.contextmanager
def _tokenizer_of(
    recipe: Recipe, home: Home, store: Store, on_progress: OnProgress
) -> Iterator[tuple[dict[str, str] | None, Path | None]]:
    """The tokenizer that counts lengths: what it is, and a folder with its files."""
    named = recipe.length.tokenizer
    if named is None:
        yield None, None
        return
    version, artifact = fetch_model(store, named, on_progress=on_progress)
    with tempfile.TemporaryDirectory(dir=home.datasets / ".work") as name:
        folder = Path(name)
        write_tokenizer(store.folder_of(artifact.id), folder, artifact)
        identity = identify(TextTokenizer.load(folder))
        yield {"model": version.label, "identity": identity}, folder


# Pieces


def _make_pieces(
    plan: _Plan, secrets: tuple[bytes, bytes], workers: int, ray: str | None,
    on_progress: OnProgress,
) -> None:  # fmt: skip
    todo = [one for one in plan.pieces if not (plan.work / f"{one.number:05d}.json").exists()]
    tokenizer = plan.work / "tokenizer"
    settings = Settings(
        plan.recipe.model_dump(mode="json"), str(plan.folder), str(plan.work),
        str(tokenizer) if plan.tokenizer is not None else None, bool(plan.sets),
    )  # fmt: skip
    done = sum(_size(plan, one) for one in plan.pieces) - sum(_size(plan, one) for one in todo)
    total = sum(_size(plan, one) for one in plan.pieces)
    state = [done]

    def note(piece: Piece) -> None:
        state[0] += _size(plan, piece)
        on_progress(Progress("curate", state[0], total))

    on_progress(Progress("curate", done, total))
    if ray is not None:
        make_pieces_on_ray(ray, settings, secrets, plan.files, todo, note)
    else:
        make_pieces(settings, secrets, plan.files, todo, workers, note)


def _size(plan: _Plan, piece: Piece) -> int:
    file = plan.files[piece.file]
    if file.format == "parquet":
        return file.bytes // max(1, sum(one.file == piece.file for one in plan.pieces))
    return piece.end - piece.begin


# What stays


def _decide(plan: _Plan, rows: Rows, store: Store, on_progress: OnProgress) -> Outcome:
    """Which rows stay, and which are held out. Raises `DataError` and `LeakError`."""
    recipe = plan.recipe
    outcome = Outcome(*_sum_tallies(rows))
    _check_leaks(recipe, outcome.leaks)
    alive = np.ones(len(rows), np.bool_)
    if recipe.deduplicate.exact:
        on_progress(Progress("exact duplicates", 0, 0, "rows"))
        alive &= _note_duplicates(outcome, "exact", find_exact(rows))
    if recipe.deduplicate.near is not None:
        on_progress(Progress("near duplicates", 0, 0, "rows"))
        found = find_near(rows, alive, recipe.deduplicate.near.similarity)
        alive &= _note_duplicates(outcome, "near", found)
    alive = _compare_vectors(plan, rows, alive, outcome, store, on_progress)
    for stage, wanted, choose in (
        ("balance", recipe.balance is not None, balance_rows),
        ("mix", recipe.sources[0].weight is not None, mix_rows),
    ):
        if wanted and alive.any():
            kept = choose(rows, alive, recipe)
            outcome.remove(stage, "more than its share", int(alive.sum() - kept.sum()))
            alive = kept
    if not alive.any():
        raise NoRowsError(_describe_nothing(outcome))
    outcome.alive, outcome.test = alive, split_rows(rows, alive, recipe)
    return outcome


def _describe_nothing(outcome: Outcome) -> str:
    counts = {stage: sum(found.values()) for stage, found in outcome.removed.items()}
    said = ", ".join(f"{stage} {count}" for stage, count in counts.items()) or "nothing was read"
    first = next(iter(outcome.samples), None)
    why = f"; the first: {first['stage']}, {first['reason']}" if first else ""
    return f"no row is left of {outcome.records} records ({said}{why}); change the recipe or its sources"


def _sum_tallies(rows: Rows) -> tuple[Any, ...]:
    records = 0
    removed: dict[str, Counter[str]] = {}
    changed: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    set_aside: list[dict[str, Any]] = []
    leaks: list[dict[str, Any]] = []
    for tally in rows.read_tallies():
        records += tally["records"]
        for stage, counts in tally["removed"].items():
            removed.setdefault(stage, Counter()).update(counts)
        changed.update(tally["changed"])
        unread.update(tally["unread"])
        languages.update(tally["languages"])
        redacted.update(tally["redacted"])
        for one in tally["samples"]:
            held = samples.setdefault((one["stage"], one["reason"]), [])
            if len(held) < 3:
                held.append(one)
        set_aside += tally["set_aside"][: 1000 - len(set_aside)]
        leaks += tally["leaks"]
    ordered = {stage: removed[stage] for stage in STAGES if stage in removed}
    flat = [one for held in samples.values() for one in held]
    return records, ordered, changed, unread, languages, redacted, flat, set_aside, leaks


def _check_leaks(recipe: Recipe, leaks: list[dict[str, Any]]) -> None:
    open_ = [one for one in leaks if not one["accepted"]]
    if not open_ or recipe.decontaminate is None or recipe.decontaminate.leaks == "drop":
        return
    shown = "\n".join(
        f"  {one['path']}, line {one['line']}: {one['set']}, {one['where']} ({one['rule']})"
        for one in open_[:SHOWN_LEAKS]
    )
    more = f"\n  and {len(open_) - SHOWN_LEAKS} more" if len(open_) > SHOWN_LEAKS else ""
    names = ", ".join(sorted({one["set"] for one in open_}))
    raise LeakError(
        f"{len(open_)} {'row holds' if len(open_) == 1 else 'rows hold'} what models are judged by:\n{shown}{more}\nTake them out of the "
        f"sources, or have them dropped (decontaminate: {{leaks: drop}}), or accept these sets by name "
        f"(decontaminate: {{accept: [{names}]}}): measurements on them are then too good"
    )


def _note_duplicates(outcome: Outcome, stage: str, found: I64) -> np.ndarray[Any, Any]:
    gone = np.flatnonzero(found >= 0)
    for row, first in zip(gone.tolist(), found[gone].tolist(), strict=True):
        outcome.duplicates.setdefault(first, []).append(row)
    outcome.remove(stage, "of an earlier row", len(gone))
    outcome.pairs[stage] = [(int(row), int(found[row])) for row in gone[:5]]
    return found < 0


def _compare_vectors(
    plan: _Plan, rows: Rows, alive: np.ndarray[Any, Any], outcome: Outcome, store: Store,
    on_progress: OnProgress,
) -> np.ndarray[Any, Any]:  # fmt: skip
    by, apart = plan.recipe.deduplicate.embeddings, plan.recipe.decontaminate
    named = {
        *([by.encoder] if by is not None else []),
        *([apart.encoder] if apart is not None and apart.encoder is not None else []),
    }
    if len(named) > 1:
        raise DataError(f"one build uses one encoder; the recipe names {', '.join(sorted(named))}")
    if not named:
        return alive
    embedder = make_opener(store, on_progress)(named.pop())
    try:
        embed_rows(rows, embedder, plan.work, on_progress)
        vectors = RowVectors(rows, plan.work, embedder.width)
        if apart is not None and apart.encoder is not None:
            alive = _find_paraphrases(plan, rows, vectors, embedder, alive, outcome)
        if by is not None:
            found = find_alike(vectors, alive, by.similarity)
            alive = alive & _note_duplicates(outcome, "embeddings", found)
    finally:
        embedder.close()
    return alive


def _find_paraphrases(
    plan: _Plan, rows: Rows, vectors: RowVectors, embedder: Embedder, alive: np.ndarray[Any, Any],
    outcome: Outcome,
) -> np.ndarray[Any, Any]:  # fmt: skip
    apart = plan.recipe.decontaminate
    assert apart is not None
    begins, lengths = rows.column("begin"), rows.column("bytes")
    left = alive.copy()
    seen = np.zeros(len(rows), np.bool_)
    # An item that is accepted may be the nearest one, and hide another.
    for accepted in (False, True):
        sets = [one for one in plan.sets if (one.name in apart.accept) == accepted]
        items = [item for one in sets for item in one.read()]
        if not items:
            continue
        meant = embed_texts(embedder, [item.text for item in items])
        for row, item in find_meant(vectors, len(rows), meant, apart.similarity):
            if not alive[row] or seen[row]:
                continue
            where = rows.read_row(row, int(begins[row]), int(lengths[row]))["provenance"]
            if accepted and "leak" in where:
                continue  # it is noted, and stays
            seen[row] = True
            left[row] = accepted
            outcome.leaks.append({
                "set": items[item].set, "where": items[item].where, "rule": "embedding",
                "accepted": accepted, "path": where["path"], "line": where["line"],
            })  # fmt: skip
    _check_leaks(plan.recipe, outcome.leaks)
    outcome.remove("leaks", "embedding", int(alive.sum() - left.sum()))
    return left


def describe_outcome(built: BuiltSet) -> dict[str, Any]:
    """What `thrifty data build --json` prints of a set."""
    report = json.loads((built.folder / "report.json").read_text(encoding="utf-8"))
    return {
        "name": built.name, "version": f"v{built.version}", "rows_in": report["rows_in"],
        "rows_out": built.count(),
        "removed": {stage: sum(found.values()) for stage, found in report["removed"].items()},
    }  # fmt: skip
