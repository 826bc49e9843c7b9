"""From the rows that stay to a published version: files of rows, packs, report and manifest."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from thrifty.curate.augmenting import Made
from thrifty.curate.evaluation_sets import EvaluationSet
from thrifty.curate.piece import SAMPLE_CHARS
from thrifty.curate.recipe import Recipe, name_source, write_recipe
from thrifty.curate.report import make_html
from thrifty.curate.rows import I64, Rows
from thrifty.curate.select import order_rows, pack_rows
from thrifty.curate.sources import SourceFile
from thrifty.curate.texts import join_compared
from thrifty.data.built import (
    TEST,
    TRAIN,
    BuiltSet,
    RowFile,
    RowWriter,
    list_versions,
    open_set,
    publish,
)
from thrifty.home import make_private_folder
from thrifty.types import OnProgress, Progress
from thrifty.version import __version__

SHOWN_DUPLICATES = 5
BINS = 20


@dataclass
class Outcome:
    """What the stages came to."""

    records: int
    removed: dict[str, Counter[str]]
    """By stage, by reason."""
    changed: Counter[str]
    unread: Counter[str]
    """Users, conversations and times that are not read, by their field."""
    languages: Counter[str]
    redacted: Counter[str]
    samples: list[dict[str, Any]]
    set_aside: list[dict[str, Any]]
    leaks: list[dict[str, Any]]
    duplicates: dict[int, list[int]] = field(default_factory=dict)
    """By a row that stays: those that were removed for it."""
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By stage: some removed rows, each with the one that stays."""
    alive: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    test: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    made: Made = field(default_factory=Made)
    """What a model made of the rows that are learned."""

    @property
    def split(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which rows are learned, and which are held out."""
        return self.alive & ~self.test, self.alive & self.test

    def remove(self, stage: str, reason: str, count: int) -> None:
        """Count rows that a stage removed."""
        if count:
            self.removed.setdefault(stage, Counter())[reason] += count


def write_set(
    recipe: Recipe,
    name: str,
    datasets: Path,
    work: Path,
    rows: Rows,
    outcome: Outcome,
    files: Sequence[SourceFile],
    tokenizer: dict[str, str] | None,
    sets: Sequence[EvaluationSet],
    rules: dict[str, str],
    on_progress: OnProgress,
) -> BuiltSet:
    """Write the rows that stay and publish them. Raises `OSError`."""
    staging = work / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    make_private_folder(staging)
    order = {
        split: order_rows(rows, np.flatnonzero(outcome.alive & (outcome.test == is_test)), recipe)
        for split, is_test in ((TRAIN, False), (TEST, True))
    }
    written = _write_rows(staging, rows, outcome, order, recipe.seed, on_progress)
    if recipe.pack is not None:
        tokens = rows.column("tokens")
        for split, numbers in order.items():
            packs = pack_rows(tokens[numbers], recipe.pack)
            _write_lines(staging / f"{split}.packs.jsonl", packs)
    sources = [
        {"source": one.name, "path": one.path, "bytes": one.bytes, "sha256": one.sha256}
        for one in files
        if recipe.sources[one.source].log is None
    ] + [{"source": name_source(one), "log": one.log} for one in recipe.sources if one.log]
    manifest: dict[str, Any] = {
        "name": name, "kind": recipe.kind, "evaluation": recipe.evaluation,
        "built_s": round(time.time(), 3), "thrifty": __version__, "tokenizer": tokenizer,
        "pack": recipe.pack, "files": [vars(one) for one in written], "sources": sources,
        "apart_from": [{"set": one.name, "sha256": one.sha256} for one in sets],
        "recipe": json.loads(recipe.model_dump_json()), "rules": rules,
        "augment": None if recipe.augment is None else recipe.augment.for_training(),
    }  # fmt: skip
    known = _find_same(datasets, name, manifest)
    if known is not None:
        return known
    report = make_report(recipe, rows, outcome, order, manifest)
    _write_text(staging / "recipe.yaml", write_recipe(recipe))
    _write_text(staging / "report.json", json.dumps(report, indent=1) + "\n")
    samples = [*outcome.samples, *_sort(outcome.made.samples), *_list_pairs(rows, outcome)]
    _write_lines(staging / "samples.jsonl", samples)
    if outcome.set_aside:
        _write_lines(staging / "set-aside.jsonl", outcome.set_aside)
    _write_text(staging / "report.html", make_html(staging, name))
    return publish(staging, datasets, manifest)


def _sort(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda one: str(one["reason"]))


def _find_same(datasets: Path, name: str, manifest: dict[str, Any]) -> BuiltSet | None:
    """The newest version, if it has the same rows by the same recipe."""
    if not list_versions(datasets, name):
        return None
    newest = open_set(datasets, name)
    before = {"rules": {}, **newest.manifest}  # older ones do not tell
    facts = ("files", "recipe", "rules", "tokenizer", "kind")
    return newest if all(before.get(key) == manifest[key] for key in facts) else None


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)


def _write_lines(path: Path, values: Sequence[Any]) -> None:
    _write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in values))


def _write_rows(
    staging: Path,
    rows: Rows,
    outcome: Outcome,
    order: dict[str, I64],
    seed: int,
    on_progress: OnProgress,
) -> tuple[RowFile, ...]:
    begins, lengths = rows.column("begin"), rows.column("bytes")

    def read(row: int) -> bytes:
        return rows.read_line(row, int(begins[row]), int(lengths[row]))

    total = sum(map(len, order.values()))
    writer = RowWriter(staging)
    done = 0
    for split, numbers in order.items():
        new = _place_new(outcome.made.rows if split == TRAIN else [], len(numbers), seed)
        for place, row in enumerate(numbers.tolist()):
            writer.write(split, _finish_row(outcome, row, read))
            for one in new.get(place, ()):
                writer.write(split, msgspec.json.encode(one) + b"\n")
            done += 1
            if not done % 1000:
                on_progress(Progress("write", done, total, "rows"))
    return writer.close()


def _place_new(
    made: Sequence[dict[str, Any]], count: int, seed: int
) -> dict[int, list[dict[str, Any]]]:
    """New rows among the others, by the place of the one that each follows."""
    draw = random.Random(seed)
    found: dict[int, list[dict[str, Any]]] = {}
    for one in made:
        found.setdefault(draw.randrange(count), []).append(one)
    return found


def _finish_row(outcome: Outcome, row: int, read: Callable[[int], bytes]) -> bytes:
    """The line of a row, with what it stands for and what was made of it."""
    line = read(row)
    gone, forms = outcome.duplicates.get(row), outcome.made.forms.get(row)
    if not gone and not forms:
        return line
    value = msgspec.json.decode(line)
    if gone:
        some = [_say_place(msgspec.json.decode(read(one))) for one in gone[:SHOWN_DUPLICATES]]
        value["provenance"]["duplicates"] = {"count": len(gone), "some": some}
    if forms:
        value["made"] = forms
    return msgspec.json.encode(value) + b"\n"


def _say_place(row: dict[str, Any]) -> str:
    return f"{row['provenance']['path']}, line {row['provenance']['line']}"


def _list_pairs(rows: Rows, outcome: Outcome) -> list[dict[str, Any]]:
    """Samples of duplicates: each with the row that stays."""
    begins, lengths = rows.column("begin"), rows.column("bytes")
    found = []
    for stage, pairs in outcome.pairs.items():
        for gone, kept in pairs:
            first, second = (
                rows.read_row(row, int(begins[row]), int(lengths[row])) for row in (gone, kept)
            )
            found.append({
                "stage": stage, "reason": "of an earlier row",
                "text": join_compared(first)[:SAMPLE_CHARS],
                "kept": join_compared(second)[:SAMPLE_CHARS],
                "provenance": first["provenance"], "kept_provenance": second["provenance"],
            })  # fmt: skip
    return found


# The report


def make_report(
    recipe: Recipe,
    rows: Rows,
    outcome: Outcome,
    order: dict[str, I64],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """What each stage did, as JSON. Without the samples, which `samples.jsonl` holds."""
    left = outcome.records
    stages = []
    for stage, counts in outcome.removed.items():
        gone = sum(counts.values())
        stages.append({
            "stage": stage, "rows_in": left, "removed": gone, "rows_out": left - gone,
            "reasons": dict(counts.most_common()),
        })  # fmt: skip
        left -= gone
    kept = np.concatenate([*order.values()])
    source = rows.column("source")[kept]
    return {
        "name": manifest["name"], "kind": recipe.kind, "rows_in": outcome.records,
        "rows_out": len(kept) + len(outcome.made.rows),
        "splits": {
            split: len(numbers) + (len(outcome.made.rows) if split == TRAIN else 0)
            for split, numbers in order.items()
        },
        "made": outcome.made.as_dict() if outcome.made.model else None,
        "removed": {stage: dict(counts.most_common()) for stage, counts in outcome.removed.items()},
        "stages": stages, "changed": dict(outcome.changed.most_common()),
        "unread": dict(outcome.unread.most_common()),
        "redacted": dict(outcome.redacted.most_common()),
        "languages": dict(outcome.languages.most_common()),
        "sources": {
            name_source(one): int((source == number).sum())
            for number, one in enumerate(recipe.sources)
        },
        "near_duplicates": {
            stage: sum(outcome.removed.get(stage, {}).values())
            for stage in ("exact", "near", "embeddings")
        },
        "largest_groups": sorted(map(len, outcome.duplicates.values()), reverse=True)[:10],
        "leaks": outcome.leaks[:1000],
        "lengths": {
            "unit": "tokens" if recipe.length.tokenizer else "words",
            **_describe_lengths(rows.column("tokens")[kept]),
        },
        "labels": _count_labels(recipe, rows, kept),
        "packs": _describe_packs(recipe, rows, order),
        "tokenizer": manifest["tokenizer"], "apart_from": manifest["apart_from"],
    }  # fmt: skip


def _describe_lengths(lengths: npt.NDArray[Any]) -> dict[str, Any]:
    if not len(lengths):
        return {"sum": 0, "median": 0, "most": 0, "counts": [], "edges": []}
    # Lengths spread over decades.
    edges = np.unique(np.geomspace(max(1, lengths.min()), lengths.max() + 1, BINS + 1).round())
    counts, edges = np.histogram(lengths, edges if len(edges) > 1 else 1)
    return {
        "sum": int(lengths.sum(dtype=np.int64)), "median": float(np.median(lengths)),
        "most": int(lengths.max()), "counts": counts.tolist(), "edges": edges.tolist(),
    }  # fmt: skip


def _count_labels(recipe: Recipe, rows: Rows, kept: I64) -> dict[str, int] | None:
    if recipe.kind != "kto":
        return None
    liked = int(rows.column("label")[kept].sum())
    return {"liked": liked, "disliked": len(kept) - liked}


def _describe_packs(recipe: Recipe, rows: Rows, order: dict[str, I64]) -> dict[str, Any] | None:
    if recipe.pack is None:
        return None
    tokens = rows.column("tokens")[order[TRAIN]]
    packs = pack_rows(tokens, recipe.pack)
    filled = float(tokens.sum() / (len(packs) * recipe.pack)) if packs else 0.0
    return {"tokens": recipe.pack, "count": len(packs), "filled": round(filled, 4)}
