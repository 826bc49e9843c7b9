"""Judged answers: which of two answers to a question a judge prefers, blind and in both orders.

A version wins, loses or ties on each question; two equal answers tie without being shown. What a
model has said is kept until the gate has ended, so that one that was killed asks for the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from thrifty.errors import EvaluationError
from thrifty.evaluate.judges import Judge, JudgeAway, compare
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
) -> list[int]:
    """For each question 1 where the candidate's answer is better, -1 where it is worse, else 0.
    Blocks. Raises `EvaluationError` where the judge is away.
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
    path.unlink()
    path.with_suffix(".lock").unlink(missing_ok=True)
    return found
