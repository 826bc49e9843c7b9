"""`thrifty quality`: canary questions, faults of answers, what users did, the judge, and drift."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.quality.figures import describe_quality

Row = dict[str, Any]


def run_quality(deployment: str | None, *, as_json: bool) -> None:
    """Print the figures of each version."""
    with open_home(find_home()) as database:
        found = describe_quality(database, time.time(), deployment)
    if as_json:
        print_json(found)
        return
    shown = False
    for title, print_part in (
        ("Canary questions", _print_canaries), ("Answers", _print_answers),
        ("What users did", _print_engagement), ("Judged", _print_judged), ("Drift", _print_drift),
    ):  # fmt: skip
        shown = print_part(found, title) or shown
    if not shown:
        print_line(
            "No answer was checked and no canary question asked yet; docs/quality.md says how both "
            "work."
        )


def _print_canaries(found: Row, title: str) -> bool:
    rows = found["canaries"]
    if not rows:
        return False
    print_line(title)
    columns = (
        "deployment", "version", "revision", "right", "share", "95%", "lost", "gained", "change",
        "faults", "rounds", "last",
    )  # fmt: skip
    print_table(
        columns,
        [
            (
                one["deployment"], one["version"], one["revision"][:8],
                f"{one['right']} of {one['asked']}", _share(one["share"]), _interval(one),
                str(one["lost"]), str(one["gained"]), one["change"],
                one["failed"]
                or ", ".join(f"{kind} {count}" for kind, count in sorted(one["faults"].items())),
                str(one["rounds"]), _when(one["last_s"]),
            )
            for one in rows
        ],
    )  # fmt: skip
    return True


def _print_answers(found: Row, title: str) -> bool:
    return _print_shares(found, title, "faults")


def _print_engagement(found: Row, title: str) -> bool:
    shown = _print_shares(found, title, "engagement")
    rows = [
        (
            one["deployment"], one["version"], str(one["sessions"]["count"]),
            f"{one['sessions']['turns']:.2f}", _bounds(one["sessions"], "{:.2f}"),
            f"{one['sessions']['minutes']:.1f}", str(one["sessions"]["returned"]),
        )
        for one in found["versions"]
        if one["sessions"]["count"]
    ]  # fmt: skip
    if rows:
        columns = ("deployment", "version", "sessions", "turns", "95%", "minutes", "returned")
        print_table(columns, rows)
    return shown or bool(rows)


def _print_shares(found: Row, title: str, kind: str) -> bool:
    rows = [
        (
            one["deployment"], one["version"], f"{one['checked']} of {one['answers']}",
            share["name"], _share(share["share"]), _interval(share), str(share["count"]),
            f"{share['all_found']} of {share['all_count']}",
        )
        for one in found["versions"]
        for share in one[kind]
        if share["all_count"]
    ]  # fmt: skip
    if rows:
        print_line(title)
        columns = (
            "deployment", "version", "checked", "what", "share", "95%", "conversations", "in all",
        )  # fmt: skip
        print_table(columns, rows)
    return bool(rows)


def _print_judged(found: Row, title: str) -> bool:
    rows = [
        (
            one["deployment"], one["version"], one["judge"], str(one["scored"]),
            "" if one["mean"] is None else f"{one['mean']:.2f}", _bounds(one, "{:.2f}"),
            f"by {one['labels']} labels" if one["corrected"] else "no",
            "not known" if one["kappa"] is None
            else f"{one['kappa']:.2f} ({one['kappa_low']:.2f} to {one['kappa_high']:.2f})",
            str(one["compared"]),
        )
        for one in found["judged"]
    ]  # fmt: skip
    if rows:
        print_line(title)
        columns = (
            "deployment", "version", "judge", "scored", "mean", "95%", "corrected", "kappa", "of",
        )  # fmt: skip
        print_table(columns, rows)
    return bool(rows)


def _print_drift(found: Row, title: str) -> bool:
    rows = [
        (
            _when(one["at_s"])[:10], one["deployment"], one["version"] or "(what is asked)",
            one["name"], f"{one['effect']:+.3f}", f"{one['p_value']:.2g}", str(one["before"]),
            str(one["now"]), "changed" if one["drifted"] else "",
        )
        for one in found["drift"]
    ]  # fmt: skip
    if rows:
        print_line(title)
        columns = ("day", "deployment", "version", "what", "effect", "p", "before", "now", "")
        print_table(columns, rows)
    return bool(rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(one: Row) -> str:
    return f"{one['low']:.1%} to {one['high']:.1%}"


def _bounds(one: Row, form: str) -> str:
    if one["low"] is None or one["high"] is None:
        return ""
    return f"{form.format(one['low'])} to {form.format(one['high'])}"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
