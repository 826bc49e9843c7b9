"""Recorded answers for tests: rows of the request log with their texts, as a gateway writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from thrifty.db import Database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.response_ids import EPOCH_S
from thrifty.quality.check import AnswerChecker

NOON_S = 1_790_000_000 // 86400 * 86400 + 43200.0
DEPLOYMENT = "chat"
_numbers = iter(range(1, 1 << 30))


def answered(
    asked: str | Sequence[dict[str, Any]] | None,
    answer: str = "Paris.",
    *,
    at_s: float = NOON_S,
    version: str = "a",
    facts: dict[str, Any] | None = None,
    **values: Any,
) -> Entry:
    """One answer; `asked` is a question, a conversation, or None where texts are not kept."""
    number = (int((at_s - EPOCH_S) * 1000) << 22) + next(_numbers) % 4_000_000
    row = dict.fromkeys(COLUMNS) | {
        "id": number, "at_s": at_s, "endpoint": "/v1/chat/completions", "status": 200,
        "stream": False, "attempts": 1, "e2e_ms": 1000.0, "deployment": DEPLOYMENT,
        "version": version, "origin": "client", "cache": "miss", "prompt_tokens": 10,
        "completion_tokens": 5, "end_user": "ann", **values,
    }  # fmt: skip
    text = None
    if asked is not None:
        messages = [user(asked)] if isinstance(asked, str) else list(asked)
        text = (json.dumps(messages), answer, json.dumps(facts) if facts else None)
    return Entry(tuple(row[name] for name in COLUMNS), text)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def record(database: Database, *entries: Entry) -> None:
    """Write rows, and add them to the rollups, as a service does."""
    assert not RequestLog(database).write(entries)
    Roller(database).catch_up()


def check(database: Database, settings: DesiredChecks | None = None) -> int:
    """Check all that is new."""
    checker, total = AnswerChecker(database), 0
    while (count := checker.step({DEPLOYMENT: settings or DesiredChecks(1e6)})) is not None:
        total += count
    return total
