"""Judged answers: which of two answers to a question a judge prefers, blind and in both orders.

A version wins, loses or ties on each question; two equal answers tie without being shown.
Questions about whose answers the judge said nothing usable are left out. What it said is kept until
the gate has ended, so that one that was killed asks for the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from thrifty.errors import EvaluationError
from thrifty.evaluate.judges import SILENT, Judge, JudgeAway, compare, is_mute
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.spec.judges import RemoteJudge
from thrifty.types import OnProgress, Progress

Named = str | RemoteJudge


def name_judge(judge: Named) -> str:
    """What records and messages call a judge."""
    return judge if isinstance(judge, str) else f"{judge.model} at {judge.url}"


def prefer_answers(
    open_judge: Callable[[], Judge],
    judge: Named,
    questions: Sequence[str],
    candidate: Sequence[str],
    against: Sequence[str],
    folder: Path,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> list[int]:
    """For each question 1 where the candidate's answer is better, -1 where it is worse, 0 where
    they tie, or `SILENT`. Blocks. Raises `EvaluationError` where the judge is away or says too
    little.
    """
    name = name_judge(judge)
    asked = json.dumps([name, *questions, *candidate, *against])
    path = folder / f"preferred-{hashlib.sha256(asked.encode()).hexdigest()[:24]}.jsonl"
    opened: list[Judge] = []
    found: list[int] = []
    try:
        with KeptAnswers(path) as kept:
            for number, (question, new, old) in enumerate(
                zip(questions, candidate, against, strict=True)
            ):
                known = kept.find(question, new, old)
                if known is None:
                    if not opened and new != old:
                        opened.append(open_judge())
                    known = compare(opened[0], question, new, old) if new != old else 0
                    if known != SILENT:
                        kept.add(known, question, new, old)
                found.append(int(known))
                on_progress(Progress("judge", number + 1, len(questions), "questions"))
    except JudgeAway as error:
        raise EvaluationError(
            f"{error}; {len(found)} of {len(questions)} questions are judged and kept: once the judge "
            f"{name} is back, the same command goes on"
        ) from None
    finally:
        for one in opened:
            one.close()
    silent = found.count(SILENT)
    shown = sum(new != old for new, old in zip(candidate, against, strict=True))
    if silent and (silent == shown or is_mute(silent, shown)):
        raise EvaluationError(
            f"the judge {name} said nothing usable of {silent} of {shown} pairs of answers: no answer of "
            "the form that it was asked for, or another one once the answers changed places. Name a "
            "better judge, or mend it; the same command then asks it for these again"
        )
    if silent:
        on_note(
            f"{silent} of {len(questions)} questions are not compared: the judge said nothing usable of "
            "their answers"
        )
    path.unlink()
    path.with_suffix(".lock").unlink(missing_ok=True)
    return found


def grade_preferred(outcomes: Sequence[int]) -> tuple[list[bool | None], list[bool | None]]:
    """Whether each answer of the candidate, and of the other version, is not worse; None where the
    judge said nothing usable.
    """
    return (
        [None if one == SILENT else one >= 0 for one in outcomes],
        [None if one == SILENT else one <= 0 for one in outcomes],
    )
