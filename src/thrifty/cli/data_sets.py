"""`thrifty data build|show|remove`: data sets that are built by recipes."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.data.built import BuiltSet, list_sets, open_set, remove_set
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.untrusted_text import sanitize_line


def run_build(
    recipe: Path,
    name: str,
    *,
    workers: int | None,
    ray: str | None,
    restart: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build a set and say what each stage did; with `dry_run` only what a model would be asked."""
    from thrifty.curate.build import build_data, describe_outcome, estimate_augmentation

    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    if dry_run:
        with show_progress() as on_progress:
            expected = estimate_augmentation(
                recipe, name, workers=count, on_progress=on_progress
            )  # fmt: skip
        if as_json:
            print_json(expected)
            return
        print_line(
            f"about {expected['requests']:,} requests, {expected['tokens_read']:,} tokens read, "
            f"{expected['tokens_written']:,} written, {expected['cost']:g} at the recipe's price"
        )
        return
    with show_progress() as on_progress:
        built = build_data(
            recipe, name, workers=count, ray=ray, restart=restart, on_progress=on_progress,
            on_note=tell,
        )  # fmt: skip
    found = describe_outcome(built)
    if as_json:
        print_json(found)
        return
    print_line(f"{built.label}: {found['rows_out']:,} rows of {found['rows_in']:,} records")
    for stage, removed in found["removed"].items():
        print_line(f"  {stage:12} {removed:,} removed")
    for split in ("train", "test"):
        print_line(f"  {split:12} {built.count(split):,} rows")
    print_line(str(built.folder / "report.html"))


def describe_set(built: BuiltSet) -> dict[str, Any]:
    """One version of a set, for a list."""
    return {
        "name": built.name, "version": f"v{built.version}", "kind": built.kind,
        "train": built.count("train"), "test": built.count("test"),
        "bytes": sum(one.bytes for one in built.files),
        "evaluation": bool(built.manifest.get("evaluation")), "built_s": built.manifest["built_s"],
        "sources": [one["source"] for one in built.manifest["sources"]],
    }  # fmt: skip


def list_built() -> list[dict[str, Any]]:
    """All versions of all built sets."""
    return [describe_set(built) for built in list_sets(find_home().datasets)]


def run_show(named: str, *, row: int | None, report: bool, as_json: bool) -> None:
    """Show a set, or the history of one row."""
    built = open_set(find_home().datasets, named)
    if row is not None:
        _show_row(built, row, as_json=as_json)
        return
    if report:
        from thrifty.curate.report import REPORT, write_report

        path = built.folder / REPORT
        print_line(str(path if path.exists() else write_report(built)))
        return
    facts = json.loads((built.folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"manifest": built.manifest, "report": facts, "folder": str(built.folder)})
        return
    print_line(f"{built.label}: {built.kind}, {built.count():,} rows, {built.folder}")
    rows = [
        (one["stage"], f"{one['rows_in']:,}", f"{one['removed']:,}", f"{one['rows_out']:,}")
        for one in facts["stages"]
    ]
    print_table(("stage", "rows in", "removed", "rows out"), rows)
    splits = ", ".join(f"{split} {built.count(split):,}" for split in ("train", "test"))
    print_line(f"splits: {splits}")
    for source, count in facts["sources"].items():
        print_line(f"source {source}: {count:,} rows")
    apart = ", ".join(one["set"] for one in facts["apart_from"]) or "nothing"
    print_line(f"apart from: {apart}")
    for erased in built.manifest.get("erased", ()):
        print_line(f"erased since: {erased['rows']} rows")


def _show_row(built: BuiltSet, number: int, *, as_json: bool) -> None:
    from thrifty.train.shown_row import show_tokens

    split, row = built.read_row(number)
    texts, missing = [], None
    try:
        texts = show_tokens(built, row, Store(find_home().models))
    except ThriftyError as error:
        missing = str(error)
    history = row.pop("provenance")
    if as_json:
        print_json({
            "set": built.label, "row": number, "split": split, "value": row, "history": history,
            "texts": texts,
        })  # fmt: skip
        return
    print_line(f"{built.label}, row {number} ({split})")
    print_line(json.dumps(row, ensure_ascii=False, indent=2))
    print_line("history:")
    forms = Counter((one["method"], one["model"]) for one in row.get("made", ()))
    told = [f"{n} by {method}, by {model}" for (method, model), n in forms.items()]
    for line in [*tell_history(history, split, built), *(f"other forms: {one}" for one in told)]:
        print_line(f"  {sanitize_line(line, 400)}")
    for one in texts:
        spans = ", ".join(f"{begin} to {end}" for begin, end in one["learned"]) or "all, compared"
        print_line(f"{len(one['tokens'])} tokens, learned: {spans}")
        print_line(f"  {json.dumps(one['text'], ensure_ascii=False)}")
        print_line(f"  {' '.join(map(str, one['tokens']))}")
    if missing is not None:
        tell(f"its tokens are not shown: {missing}")


def tell_history(history: dict[str, Any], split: str, built: BuiltSet) -> list[str]:
    """What became of a row, from its source to its place, in sentences."""
    log = f", responses {history['responses']}" if history.get("responses") else ""
    lines = [
        f"read from {history['source']}: {history['path']}, record {history['line']}{log}",
        f"the record's SHA-256: {history['sha256']}",
    ]
    for key, what in (
        ("judged", "judged: {}"), ("feedback", "feedback: {}"), ("subjects", "of the persons {}"),
        ("language", "language: {}"), ("changed", "changed by {}"),
        ("leak", "holds an accepted evaluation item: {}"),
        ("tokens", "{} tokens"), ("words", "{} words"),
    ):  # fmt: skip
        if history.get(key):
            lines.append(what.format(_say(history[key])))
    made = history.get("made")
    if made:
        places = "; ".join(f"{one['path']}, record {one['line']}" for one in made["rows"])
        lines.append(f"made by {made['method']}, by {made['model']}, of {places}")
    same = history.get("duplicates")
    if same:
        lines.append(f"stands for {same['count']} duplicates: {'; '.join(same['some'])}")
    lines.append(f"put into {split} of {built.label}")
    return lines


def _say(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({_say(one)})" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def run_remove(named: str) -> None:
    """Remove a version, or all versions."""
    for label in remove_set(find_home().datasets, named):
        tell(f"{label} is removed")
