"""What trusted users judged and the loop never learns: a share of their prompts, held out for good.

A prompt is held out by its checksum alone, so that every run holds out the same ones. What anybody
said of an answer to it is not learned, nor are questions that paraphrase it lightly. What trusted
users said is built into a data set of its own, on which the gate judges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from thrifty.curate.build import build_data
from thrifty.data.built import BuiltSet
from thrifty.db.erasures import note_export
from thrifty.db.feedback import Judged, Judgement
from thrifty.db.request_queries import read_texts
from thrifty.db.subjects import open_subjects
from thrifty.errors import DataError
from thrifty.feedback.export import Form, Skipped, export_rows
from thrifty.files import replace_atomically
from thrifty.home import make_private_folder
from thrifty.improve.turn import Turn, leave_texts
from thrifty.spec.improve import ImproveGuardsSpec

FindPrompt = Callable[[Judged], str | None]


def split_trusted(
    judged: Sequence[Judged], guards: ImproveGuardsSpec, find_prompt: FindPrompt
) -> tuple[list[Judged], list[Judged], int]:
    """The responses to learn from, those that are held out with what trusted users alone said of
    them, and how many judgements are not learned for that. `find_prompt` gives the recorded prompt
    of a response, None where it is not known; it is asked only if somebody is trusted.
    """
    trusted = {(one.tenant, one.user) for one in guards.trusted}
    if not trusted:
        return list(judged), [], 0
    prompts = {one.response: find_prompt(one) for one in judged}
    held = {
        prompt
        for one in judged
        if (prompt := prompts[one.response]) is not None
        and any(_is_of(one, said, trusted) for said in one.judgements)
        and is_held_out(prompt, guards.holdout)
    }
    learned, apart, left_out = [], [], 0
    for one in judged:
        if prompts[one.response] not in held:
            learned.append(one)
            continue
        left_out += len(one.judgements)
        own = [said for said in one.judgements if _is_of(one, said, trusted)]
        if own:
            apart.append(replace(one, judgements=own))
    return learned, apart, left_out


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt is among the share that is held out; a larger share holds out more."""
    digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8, person=b"trusted")
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def _is_of(one: Judged, said: Judgement, users: set[tuple[str, str]]) -> bool:
    return said.user is not None and (one.tenant, said.user) in users


def find_prompts(turn: Turn) -> FindPrompt:
    """Reads recorded prompts."""

    def find(one: Judged) -> str | None:
        texts = read_texts(turn.database, one.response)
        return None if texts is None else texts.prompt

    return find


def build_trusted(turn: Turn, held: Sequence[Judged]) -> BuiltSet | None:
    """The data set of what is held out; None where nothing is. Raises `ThriftyError`."""
    path = make_private_folder(turn.home.data / "feedback") / f"{turn.name}.trusted.jsonl"
    # Before it is written, so that `thrifty forget` knows of it in any case.
    note_export(turn.database, path, Form.KTO.value, who=turn.who)
    rows = list(_export(turn, held))
    if not rows:
        return None
    _write(path, rows)
    recipe = {
        "kind": Form.KTO.value,
        "sources": [{"name": f"trusted:{turn.deployment}", "path": str(path)}],
        **leave_texts(turn),
        "deduplicate": {"near": False}, "decontaminate": False, "split": {"test": 0},
    }  # fmt: skip
    try:
        return build_data(recipe, f"{turn.name}-trusted", home=turn.home)
    except DataError as error:
        turn.on_note(f"what trusted users judged gives no data set: {error}")
        return None
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def list_questions(turn: Turn, held: Sequence[Judged]) -> Iterator[list[str]]:
    """Files of the questions that are held out, which the data to learn from are kept apart from;
    removed afterwards.
    """
    asked = [
        {"question": _find_question(row["prompt"]), "provenance": row["provenance"]}
        for row in _export(turn, held)
    ]
    if not asked:
        yield []
        return
    path = make_private_folder(turn.home.data / "feedback") / f"{turn.name}.questions.jsonl"
    note_export(turn.database, path, Form.KTO.value, who=turn.who)
    _write(path, asked)
    try:
        yield [str(path)]
    finally:
        path.unlink(missing_ok=True)


def _find_question(prompt: list[dict[str, Any]]) -> str:
    said = [str(one.get("content") or "") for one in prompt if one.get("role") == "user"]
    return said[-1] if said else ""


def _export(turn: Turn, held: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    subjects = open_subjects(turn.database)
    return export_rows(turn.database, Form.KTO, subjects, Skipped(), judged=held)


def _write(path: Any, rows: Iterable[dict[str, Any]]) -> None:
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
