"""One round of canary questions: every question to one replica of every live version.

Replicas are asked directly, past the gateway: nothing counts in quotas, caches, the request log or
users' statistics. Answers are judged at once and not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.data.fetch import fetch_set
from thrifty.data.sets import SETS
from thrifty.db.desired_state import DesiredQuality
from thrifty.db.fleet import FleetState, VersionRow
from thrifty.db.quality import QualityAnswer
from thrifty.db.ready_replicas import find_ready_replica
from thrifty.errors import EvaluationError
from thrifty.evaluate.answer_faults import find_faults
from thrifty.evaluate.answers import is_right
from thrifty.evaluate.questions import Question, digest_questions, read_questions
from thrifty.evaluate.served import ServedUrl
from thrifty.untrusted_text import sanitize_line

TIMEOUT_S = 60.0
"""For one answer; a replica is not asked on after a question without one."""
DIGEST = 16
MAX_REASON = 200


def load_questions(wanted: DesiredQuality, data: Path, store: Store) -> list[Question]:
    """The questions with known answers; `data` is the folder of fetched sets. Blocks. Raises
    `EvaluationError` and `SourceError`.
    """
    is_set = wanted.questions in SETS
    path = fetch_set(wanted.questions, data, store) if is_set else Path(wanted.questions)
    found = [one for one in read_questions(path, wanted.count) if one.answers]
    if not found:
        raise EvaluationError(f"{wanted.questions} holds no question with known answers")
    return found


def ask_version(
    questions: Sequence[Question],
    state: FleetState,
    deployment: str,
    version: VersionRow,
    stopping: Callable[[], bool],
) -> list[QualityAnswer]:
    """Ask one version all questions; none where it has no ready replica. Blocks."""
    there = find_ready_replica(state, deployment, version)
    if there is None:
        return []
    digest = digest_questions(questions)[:DIGEST]
    found = []
    try:
        served = ServedUrl(there.url, there.key_env, {"cache-control": "no-store"})
    except EvaluationError:
        return []
    try:
        for place, question in enumerate(questions):
            if stopping():
                break
            right, faults = ask(served, there.model, question)
            found.append(
                QualityAnswer(
                    time.time(), deployment, version.label, version.revision, digest, place, right,
                    faults,
                )
            )  # fmt: skip
            if right is None:
                break
    finally:
        served.close()
    return found


def ask(served: ServedUrl, model: str, question: Question) -> tuple[bool | None, str]:
    """Whether the answer is right, and its faults; None with the reason where there is none."""
    try:
        reply = served.ask(
            "POST", "/v1/chat/completions", {"model": model, **question.request},
            time.monotonic() + TIMEOUT_S,
        )  # fmt: skip
        answer = str(reply["choices"][0]["message"].get("content") or "")
    except TimeoutError:
        return None, f"no answer within {TIMEOUT_S:g} s"
    except EvaluationError as error:
        return None, sanitize_line(str(error), MAX_REASON)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, "the answer is no chat completion"
    faults = find_faults(
        answer, asked=[text for _, text in question.messages], accepted=question.answers
    )
    return is_right(question, answer), ", ".join(faults)
