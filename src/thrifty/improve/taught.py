"""What a teacher answers in the place of answers that users disliked.

The teacher is another deployment, or a model on another server. It is asked what the users asked.
Its answer is learned as a correction would be: said (`sft`), liked (`kto`), or better than the one
that was disliked (`dpo`).
"""

from __future__ import annotations

import shutil
from typing import Any

from thrifty.compress.distill.answers import is_loop
from thrifty.control.improving import identify_teacher
from thrifty.curate.teacher import Teacher, find_place, find_replica
from thrifty.db.desired import read_desired
from thrifty.db.improve import note_outputs
from thrifty.db.subjects import open_subjects
from thrifty.errors import DataError
from thrifty.evaluate.refusals import is_refusal
from thrifty.feedback.export import Form, Skipped, export_rows
from thrifty.home import make_private_folder
from thrifty.improve.guards import Sifted
from thrifty.improve.turn import ImproveError, Turn
from thrifty.observe.redact import find_pseudonym
from thrifty.spec.judges import DEPLOYMENT

STREAMS, MOST, ANSWER_TOKENS = 4, 1000, 1024
"""The newest so many disliked answers are answered anew."""
LEAST_USABLE, JUDGED = 0.5, 10
"""With fewer of its answers of use, the teacher is not learned from."""
SOURCE = "taught"
TOOLS, TEMPLATE = "tools", "chat_template_kwargs"
"""Fields of a row that its prompt is rendered with, besides the messages."""


def note_teacher(turn: Turn) -> None:
    """Note which teacher the run has, by which the next one is known to be new."""
    assert turn.run is not None
    named = turn.settings.model_dump(mode="json")["teacher"]
    identity = identify_teacher(named, read_desired(turn.database).deployments)
    if identity is not None:
        note_outputs(turn.database, turn.run, "collect", {"teacher": identity})


def make_taught(turn: Turn, form: Form, sifted: Sifted) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of a form with the teacher's answers, and who the teacher is; none without one. Blocks.
    Raises `DataError` where it does not answer, or answers badly.
    """
    named = turn.settings.teacher
    if named is None:
        return [], None
    if isinstance(named, str):
        name = named.removeprefix(DEPLOYMENT)
        if name == turn.deployment:
            raise ImproveError(f"'improve.teacher' names {name!r} itself; name a better model")
        place = find_replica(turn.database, name, STREAMS)
    else:
        place = find_place(turn.home, named.url, named.model, named.key_env, "requests", STREAMS)
    disliked = list_disliked(turn, sifted)[:MOST]
    folder = make_private_folder(turn.home.datasets / ".work" / f"{turn.name}.taught")
    teacher = Teacher(place, folder, turn.on_progress, turn.on_note)
    requests = [
        {"messages": row["prompt"], **_find_tools(row), "max_tokens": ANSWER_TOKENS,
         "temperature": 0, "seed": 0}
        for row in disliked
    ]  # fmt: skip
    turn.on_note(
        f"asking {place.label} what it answers in the place of {len(requests)} disliked answers"
    )
    answers = teacher.ask(requests, "teacher", is_sound) if requests else []
    rows = [
        _make_row(row, answer, form)
        for row, answer in zip(disliked, answers, strict=True)
        if is_of_use(row, answer)
    ]
    if len(answers) >= JUDGED and len(rows) < LEAST_USABLE * len(answers):
        teacher.end()
        raise DataError(
            f"of {len(answers)} answers of the teacher {place.label} {len(answers) - len(rows)} are of "
            "no use (empty, cut, in loops, refusals, or what was disliked); name another "
            "'improve.teacher', or none"
        )
    return rows, place.label


def forget_answers(turn: Turn) -> None:
    """Remove the teacher's answers, once they are in a data set."""
    shutil.rmtree(turn.home.datasets / ".work" / f"{turn.name}.taught", ignore_errors=True)


def list_disliked(turn: Turn, sifted: Sifted) -> list[dict[str, Any]]:
    """Rows of disliked answers that nobody corrected, the newest first. What was asked with tools
    is left out: a teacher's answer would be a call as often as a text.
    """
    subjects = open_subjects(turn.database)
    rows = export_rows(turn.database, Form.KTO, subjects, Skipped(), judged=sifted.judged)
    found = [
        row for row in rows if row["provenance"]["source"] == "disliked" and "tools" not in row
    ]
    corrected = {
        one.response for one in sifted.judged if any(said.kind == "correction" for said in one.judgements)
    }  # fmt: skip
    found = [row for row in found if row["provenance"]["response"] not in corrected]
    return sorted(found, key=lambda row: -int(row["provenance"]["response"]))


def is_of_use(row: dict[str, Any], answer: str | None) -> bool:
    """Whether a teacher's answer may be learned."""
    if answer is None or not is_sound(answer):
        return False
    disliked = row["completion"][0].get("content") or ""
    return " ".join(answer.split()) != " ".join(disliked.split())


def is_sound(answer: str) -> bool:
    """Whether an answer says something: what does not is asked for again in another run."""
    empty = not answer.strip()
    return not (empty or is_loop(answer) or find_pseudonym(answer) or is_refusal(answer))


def _make_row(row: dict[str, Any], answer: str | None, form: Form) -> dict[str, Any]:
    said = [{"role": "assistant", "content": answer}]
    provenance = {**row["provenance"], "source": SOURCE}
    context = {key: row[key] for key in (TOOLS, TEMPLATE) if key in row}
    if form is Form.SFT:
        return {"messages": [*row["prompt"], *said], **context, "provenance": provenance}
    if form is Form.KTO:
        return {
            "prompt": row["prompt"],
            "completion": said,
            "label": True,
            **context,
            "provenance": provenance,
        }
    return {
        "prompt": row["prompt"], "chosen": said, "rejected": row["completion"], **context,
        "provenance": [provenance],
    }  # fmt: skip


def _find_tools(row: dict[str, Any]) -> dict[str, Any]:
    """The tools that a teacher is told of, too. What a chat template takes is each model's own."""
    return {TOOLS: row[TOOLS]} if TOOLS in row else {}
