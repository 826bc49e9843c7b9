"""`thrifty gate`: a version beside the one that serves, and the records of such judgements."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import typer

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.errors import EvaluationError
from thrifty.evaluate.gate_record import verify_record
from thrifty.evaluate.open_model import is_url
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.improve.gate.judge import TEXT, Slice
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.run import GateResult, run_gate
from thrifty.spec.judges import DEPLOYMENT, RemoteJudge, check_judge
from thrifty.untrusted_text import sanitize_line

SHOWN_SLICES = 30
QUOTED = 160


def read_judge(
    named: str | None, model: str | None, key_env: str | None
) -> str | RemoteJudge | None:
    """The judge that options name. Raises `EvaluationError`."""
    url = named is not None and is_url(named)
    if not url and (model is not None or key_env is not None):
        raise EvaluationError("--judge-model and --judge-key-env go with a URL in --judge")
    if named is None:
        return None
    if url:
        if model is None:
            raise EvaluationError(
                f"--judge {named} needs --judge-model, one of the server's models"
            )
        return RemoteJudge(url=named, model=model, key_env=key_env)
    try:
        check_judge(named)
    except ValueError:
        raise EvaluationError(
            f"--judge {named!r} is neither module:function, deployment:NAME, nor a URL"
        ) from None
    return named


def run_check(request: GateRequest, *, as_json: bool) -> None:
    """Judge a version; exits with 1 if it failed."""
    home = find_home()
    in_service = isinstance(request.judge, str) and request.judge.startswith(DEPLOYMENT)
    opened = open_home(home) if in_service else contextlib.nullcontext()
    with opened as database, show_progress() as on_progress:
        result = run_gate(Store(home.models), home, request, on_progress, tell, database=database)
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result)
    if not result.passed:
        raise typer.Exit(1)


def _show(result: GateResult) -> None:
    columns = ("", "slice", "n", "new", "serving", "base", "change", "95% interval", "")
    print_table(columns, [_row(one) for one in result.slices[:SHOWN_SLICES]])
    if len(result.slices) > SHOWN_SLICES:
        tell(f"{len(result.slices) - SHOWN_SLICES} more slices, none of which failed: --json")
    if result.speed:
        print_line()
        rows = [
            (name, f"{one['candidate']:,.4g}", f"{one['against']:,.4g}", f"{one['change']:+.0%}",
             "worse" if one["failed"] else "")
            for name, one in result.speed.items()
        ]  # fmt: skip
        print_table(("", "new", "serving", "change", ""), rows)
    for one in result.slices:
        if one.failed and one.examples:
            tell(f"{one.label}, for example:")
            for example in one.examples:
                tell(f"  Q: {_quote(example['question'])}")
                tell(f"     serving: {_quote(example['against'])}")
                tell(f"     new:     {_quote(example['candidate'])}")
    tell(result.message)
    print_line(str(result.record))


def _row(one: Slice) -> tuple[str, ...]:
    base = "" if one.base is None else _write(one, one.base)
    return (
        "x" if one.failed else "", one.label, f"{one.count:,}", _write(one, one.candidate),
        _write(one, one.against), base, f"{one.difference:+.1%}", f"{one.low:+.1%} {one.high:+.1%}",
        one.outcome,
    )  # fmt: skip


def _write(one: Slice, value: float) -> str:
    return f"{value:.2f}" if one.metric == TEXT else f"{value:.1%}"


def _quote(text: str) -> str:
    return sanitize_line(" ".join(text.split()), QUOTED) or "(nothing)"


def run_verify(path: Path, *, as_json: bool) -> None:
    """Check a record; exits with 1 if it must not be relied on."""
    home = find_home()
    found = verify_record(home, Store(home.models), path)
    record: dict[str, Any] = found.record
    if as_json:
        print_json(
            {"valid": not found.faults, "faults": found.faults, "notes": found.notes,
             "verdict": record.get("verdict"), "digest": record.get("digest")}
        )  # fmt: skip
    else:
        for note in found.notes:
            tell(note)
        for fault in found.faults:
            tell(f"not valid: {fault}")
        if not found.faults:
            print_line(f"valid: {sanitize_line(str(record.get('message')), 500)}")
    if found.faults:
        raise typer.Exit(1)
