"""Turns feedback into training rows, each with where it came from.

A response is liked or disliked by the majority of those who judged it; each person counts once
(thumbs before rating). What cannot become a row is counted by its reason, never passed over.

    sft   {"messages"}                     corrections, and liked answers
    dpo   {"prompt", "chosen", "rejected"} corrections over what they correct, and of two answers to
                                           the same prompt the liked over the disliked one
    kto   {"prompt", "completion", "label"} liked and disliked answers, and corrections as liked

The formats are the conversational ones of TRL. A row has `tools` as the model was told of them, and
`chat_template_kwargs`, where its request had some, so that the prompt that is learned is the one that
was served. Pseudonyms that redaction put in place of personal
data may stand in a prompt; an answer with one is no target, because a model would learn to say it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from thrifty.db import Database
from thrifty.db.feedback import Judged, Judgement, read_judged
from thrifty.db.request_queries import read_texts
from thrifty.db.subjects import Subjects
from thrifty.evaluate.told import read_told
from thrifty.observe.redact import find_pseudonym
from thrifty.observe.texts import Message, parse_answer, parse_prompt

CHAT = "/v1/chat/completions"


class Form(StrEnum):
    """The form of training rows."""

    SFT = "sft"
    DPO = "dpo"
    KTO = "kto"


REASONS = {
    "no_text": "without recorded texts (record.prompts)",
    "not_logged": "whose response is not in the request log",
    "undecided": "on which people disagree",
    "no_judgement": "without a judgement of the answer",
    "failed": "whose request failed",
    "not_chat": "not of /v1/chat/completions",
    "not_one_answer": "with no answer, or several",
    "pseudonym": "whose answer holds a pseudonym",
    "unpaired": "without a second answer to the same prompt",
    "disliked": "disliked, and not corrected",
    "same": "corrected to what was answered",
    "unreadable": "whose texts cannot be read",
    "unlike": "whose prompt cannot be made again (continued, cut, or with too much to keep)",
    "beyond_share": "beyond one user's share of the rows (1 divided by improve.guards.users)",
}
"""Why a judged response gives no row, completing "responses ..."."""


@dataclass
class Skipped:
    """How many judged responses gave no row, by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def note(self, reason: str) -> None:
        """Count one response."""
        assert reason in REASONS, reason
        self.counts[reason] += 1


@dataclass(frozen=True)
class Chosen:
    """Which feedback is exported; None means any."""

    tenant: str | None = None
    deployment: str | None = None
    version: str | None = None
    since_s: float | None = None


@dataclass(frozen=True)
class _Example:
    """One judged response with its texts."""

    judged: Judged
    prompt: list[Message]
    told: dict[str, Any]
    """`tools` and `chat_template_kwargs`, those of them that the request had."""
    answer: Message | None
    """The one answer; None if it may be no target."""
    correction: str | None
    liked: bool | None


def export_rows(
    database: Database,
    form: Form,
    subjects: Subjects,
    skipped: Skipped,
    chosen: Chosen | None = None,
    *,
    judged: Sequence[Judged] | None = None,
) -> Iterator[dict[str, Any]]:
    """Training rows, in an order that mixes them, the same each time. `skipped` is filled.

    `judged` are responses that were read already, in place of those that `chosen` means. Holds the feedback in memory, and texts of one response or pair at a time. Raises
    `DatabaseError`.
    """
    chosen = chosen or Chosen()
    if judged is None:
        judged = read_judged(
            database, tenant=chosen.tenant, deployment=chosen.deployment, version=chosen.version,
            since_s=chosen.since_s,
        )  # fmt: skip
    found = list(judged)
    # Mixed, because trainers read in order, and KTO compares neighbours.
    found.sort(key=lambda one: blake2b(str(one.response).encode(), digest_size=8).digest())
    if form is Form.DPO:
        yield from _make_pairs(database, found, subjects, skipped)
        return
    for one in found:
        example = _read_example(database, one, skipped)
        if example is not None:
            make = _make_sft if form is Form.SFT else _make_kto
            yield from make(example, subjects, skipped)


def decide(judgements: list[Judgement]) -> bool | None:
    """Whether a response is liked, by the majority of persons; None where they disagree evenly or
    say nothing. Thumbs count before ratings; a rating of 3 says nothing.
    """
    votes: dict[str, bool] = {}
    for kind in ("rating", "thumbs"):
        for one in judgements:
            if one.kind != kind or one.value is None or (kind == "rating" and 2 < one.value < 4):
                continue
            votes[one.user or ""] = one.value >= 4 if kind == "rating" else one.value > 0
    up = sum(votes.values())
    down = len(votes) - up
    return None if up == down else up > down


def _read_example(database: Database, judged: Judged, skipped: Skipped) -> _Example | None:
    liked = decide(judged.judgements)
    corrections = [one for one in judged.judgements if one.kind == "correction" and one.text]
    newest = max(corrections, key=lambda one: one.updated_s, default=None)
    reason = _find_obstacle(judged, liked, corrected=newest is not None)
    if reason is not None:
        skipped.note(reason)
        return None
    texts = read_texts(database, judged.response)
    if texts is None:
        skipped.note("no_text")
        return None
    try:
        prompt, answers = parse_prompt(texts.prompt), parse_answer(texts.answer)
        told = read_told(texts.facts)
    except ValueError:
        skipped.note("unreadable")
        return None
    if told is None:
        skipped.note("unlike")
        return None
    answer = answers[0] if len(answers) == 1 else None
    correction = newest.text if newest is not None else None
    if answer is None and correction is None:
        skipped.note("not_one_answer")
        return None
    if answer is not None and _holds_pseudonym(answer):
        answer = None
    if correction is not None and find_pseudonym(correction):
        correction = None
    if answer is None and correction is None:
        skipped.note("pseudonym")
        return None
    return _Example(judged, prompt, told, answer, correction, liked)


def _find_obstacle(judged: Judged, liked: bool | None, *, corrected: bool) -> str | None:
    """Why a response gives no row, as far as it can be told without its texts."""
    if judged.endpoint is None:
        return "not_logged"
    if judged.endpoint != CHAT:
        return "not_chat"
    if judged.status != 200 or judged.error is not None:
        return "failed"
    if liked is None and not corrected:
        said = any(one.kind in ("thumbs", "rating") for one in judged.judgements)
        return "undecided" if said else "no_judgement"
    return None


def _holds_pseudonym(answer: Message) -> bool:
    return find_pseudonym(json.dumps(answer, ensure_ascii=False)) is not None


def _make_sft(example: _Example, subjects: Subjects, skipped: Skipped) -> Iterator[dict[str, Any]]:
    if example.correction is not None:
        target, source = _say(example.correction), "correction"
    elif example.liked and example.answer is not None:
        target, source = example.answer, "liked"
    else:
        skipped.note("pseudonym" if example.liked else "disliked")
        return
    yield {
        "messages": [*example.prompt, target],
        **example.told,
        "provenance": _describe(example.judged, source, subjects),
    }


def _make_kto(example: _Example, subjects: Subjects, skipped: Skipped) -> Iterator[dict[str, Any]]:
    rows = []
    if example.correction is not None:
        rows.append((_say(example.correction), True, "correction"))
    if example.answer is not None and example.liked is not None:
        rows.append((example.answer, example.liked, "liked" if example.liked else "disliked"))
    elif example.answer is not None and example.correction is not None:
        rows.append((example.answer, False, "corrected"))
    if not rows:
        skipped.note("pseudonym")
    for completion, label, source in rows:
        yield {
            "prompt": example.prompt,
            **example.told,
            "completion": [completion],
            "label": label,
            "provenance": _describe(example.judged, source, subjects),
        }


def _make_pairs(
    database: Database, found: list[Judged], subjects: Subjects, skipped: Skipped
) -> Iterator[dict[str, Any]]:
    """Pairs by correction at once, and those of two answers to one prompt afterwards."""
    by_prompt: dict[bytes, dict[bool, list[Judged]]] = {}
    for judged in found:
        example = _read_example(database, judged, skipped)
        if example is None:
            continue
        if example.correction is not None and example.answer is not None:
            if example.answer.get("content") == example.correction:
                skipped.note("same")
                continue
            said = _say(example.correction)
            yield _pair(example, said, example.answer, [judged], "correction", subjects)
        elif example.answer is None:
            skipped.note("pseudonym")
        elif example.liked is not None:
            key = _hash_prompt(example)
            by_prompt.setdefault(key, {}).setdefault(example.liked, []).append(judged)
    for sides in by_prompt.values():
        liked, disliked = sides.get(True, []), sides.get(False, [])
        # Each answer is in one pair, so that no prompt outweighs the others.
        pairs = list(zip(liked, disliked, strict=False))
        for _ in range(len(liked) + len(disliked) - 2 * len(pairs)):
            skipped.note("unpaired")
        for better, worse in pairs:
            first = _read_example(database, better, skipped)
            second = _read_example(database, worse, skipped)
            if first is not None and second is not None and first.answer and second.answer:
                yield _pair(
                    first, first.answer, second.answer, [better, worse], "same prompt",
                    subjects,
                )  # fmt: skip


def _pair(
    example: _Example,
    chosen: Message,
    rejected: Message,
    judged: list[Judged],
    source: str,
    subjects: Subjects,
) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        **example.told,
        "chosen": [chosen],
        "rejected": [rejected],
        "provenance": [_describe(one, source, subjects) for one in judged],
    }


def _hash_prompt(example: _Example) -> bytes:
    judged = example.judged
    told = [example.prompt, *(example.told.items())]
    key = json.dumps([judged.tenant, judged.deployment, told], sort_keys=True)
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _say(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _describe(judged: Judged, source: str, subjects: Subjects) -> dict[str, Any]:
    users = {judged.user, *(one.user for one in judged.judgements)} - {None, ""}
    return {
        "source": source,
        "response": judged.response,
        "deployment": judged.deployment,
        "version": judged.version,
        "at": judged.at_s,
        "feedback": [f"fb-{one.id}" for one in judged.judgements],
        "subjects": sorted(subjects.name(judged.tenant, str(user)) for user in users),
    }
