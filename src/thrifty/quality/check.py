"""Checks recorded answers, a step at a time: detectors, what users did next, sessions.

Rows of the request log come by notes (`db.quality_sums`), each once. Of more answers than there is
room for, whole conversations are left out by chance, so that what follows an answer is not missed
and shares stay right.

Answers of one conversation depend on each other. Intervals need observations that do not, so that one
answer of a conversation a day is *counted*, the first that was generated; shares and intervals are of
these. How often a fault was found in all checked answers stands beside them.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select

from thrifty.db import Database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.quality_sums import (
    Checked,
    Key,
    QualitySum,
    drop_old_checks,
    prune_sums,
    read_by_number,
    read_checks,
    read_sums,
    read_texts_of,
    read_turn,
    read_unchecked,
    write_checks,
)
from thrifty.db.rollups import DAY_S, HOUR_S
from thrifty.db.tables import requests
from thrifty.observe.rollups.roll import GENERATED, USERS, Keep
from thrifty.observe.rollups.sketch import (
    decode_sketch,
    decode_sketches,
    extend_sketch,
    merge_sketches,
)
from thrifty.observe.texts import parse_answer, parse_prompt
from thrifty.openai.response_ids import EPOCH_S
from thrifty.quality.detect import Seen, detect, encode_faults
from thrifty.quality.follow import CONTINUED, KINDS, compare_requests

STEP_NOTES = 128
"""Notes in a step, each of up to 512 rows."""
SESSION_S = 1800.0
"""A pause as long as this ends a session, as web analytics count."""
KEEP_CHECKS_S = 2 * 86400.0
"""How long single checks are kept: an answer of yesterday may be followed today."""
USUAL_DAYS, LEAST_USUAL = 7, 200
"""How many days, and answers in them, tell how long answers usually are."""
FRESH_S = 600.0
BURST_S = 60.0
"""The checks of so many seconds may be done at once, after a quiet time."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
GONE = "client_gone"
COUNTED, FOLLOWED = 1, 2
"""Flags of a check: it counts in shares; something followed it."""
VALUES = ("prompt_tokens", "completion_tokens", "word_length", "distinct_words")
"""The distributions that are kept of counted answers."""
VECTORS_A_DAY = 400
"""About so many questions and answers of a deployment are embedded in a day."""
SAMPLE_WORDS = 50
"""Distinct words are counted among so many, so that the length does not matter."""
COLUMNS = (
    "id", "at_s", "origin", "endpoint", "deployment", "version", "status", "error", "cache",
    "prompt_tokens", "completion_tokens", "max_tokens", "e2e_ms", "conversation_id", "end_user",
    "tags",
)  # fmt: skip
CHOSEN_BY = (
    "id", "at_s", "origin", "endpoint", "deployment", "version", "status", "error",
    "conversation_id",
)  # fmt: skip
"""What tells whether a row is checked."""
_WORD = re.compile(r"[^\W\d_]+")


_BEFORE = (
    select(*(requests.c[name] for name in COLUMNS))
    .where(
        requests.c.conversation_id == bindparam("conversation"),
        requests.c.id < bindparam("number"),
        requests.c.id >= bindparam("oldest"),
        requests.c.deployment == bindparam("name"),
    )
    .order_by(requests.c.id.desc())
    .limit(8)
)
"""The newest rows of a conversation before one."""


@dataclass
class _Work:
    """What one step makes."""

    connection: Connection
    texts: Mapping[int, Any]
    checks: dict[int, Checked] = field(default_factory=dict)
    sums: dict[Key, QualitySum] = field(default_factory=dict)
    values: dict[Key, dict[str, list[float]]] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)
    vectors: list[dict[str, Any]] = field(default_factory=list)
    before: dict[tuple[str, str | None], Any] = field(default_factory=dict)
    """The newest row of this step by deployment and conversation."""

    def sum_of(self, row: Any) -> QualitySum:
        return self.sums.setdefault(_key(row), QualitySum())


def _key(row: Any) -> Key:
    return int(row.at_s // HOUR_S) * HOUR_S, row.deployment, row.version


class AnswerChecker:
    """Checks the answers of one database. Used by one thread at a time; several processes may, of
    which one at a time succeeds.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._usual: dict[str, tuple[float, float] | None] = {}
        self._usual_s = 0.0
        self._embedded: dict[str, float] = {}
        self._last_s = time.monotonic() - BURST_S
        self._room: dict[str, float] = {}
        """How many answers of each deployment there is room for now."""

    def step(self, settings: Mapping[str, DesiredChecks]) -> int | None:
        """Check what came since the last step, by the settings of each deployment; returns how many
        answers were, None where nothing was new. Raises `RolledMeanwhileError` if another process
        was faster, and `DatabaseError`.
        """
        self._make_room(settings)
        self._refresh_usual()
        with self._database.begin() as connection:
            turn = read_turn(connection)
            notes, numbers = read_unchecked(connection, STEP_NOTES)
            if not notes:
                return None
            work = _Work(connection, {})
            came = read_by_number(connection, requests, CHOSEN_BY, numbers)
            chosen = _choose(came, self._room, work, settings)
            kept = read_by_number(connection, requests, COLUMNS, chosen)
            work.texts = read_texts_of(connection, chosen)
            for row in sorted(kept, key=lambda one: one.id):
                self._check(work, row, settings[row.deployment])
        for key, values in work.values.items():
            sketches = work.sums[key].sketches
            for name, some in values.items():
                sketches[name] = extend_sketch(sketches.get(name), some)
        write_checks(
            self._database, turn, notes, work.checks.values(), work.scores, work.vectors,
            work.sums, merge_bytes,
        )  # fmt: skip
        return len(kept)

    def _make_room(self, settings: Mapping[str, DesiredChecks]) -> None:
        """Unused room is saved for bursts, of `BURST_S` at most."""
        now_s = time.monotonic()
        passed_s, self._last_s = now_s - self._last_s, now_s
        for name, one in settings.items():
            most = one.answers_per_s * BURST_S
            self._room[name] = min(most, self._room.get(name, most) + one.answers_per_s * passed_s)

    def clean(self, keep: Keep) -> None:
        """Delete what is kept no longer. Raises `DatabaseError`."""
        now_s = time.time()
        before = max(0, int((now_s - KEEP_CHECKS_S - EPOCH_S) * 1000)) << 22
        drop_old_checks(self._database, before)
        for step_s in (HOUR_S, DAY_S):
            prune_sums(self._database, step_s, keep.of_step(step_s), now_s)

    def _refresh_usual(self) -> None:
        if self._usual and time.monotonic() - self._usual_s < FRESH_S:
            return
        self._usual_s = time.monotonic()
        self._usual = find_usual(self._database, time.time()) or {"": None}
        self._embedded = find_embedded(self._database, time.time())

    def _check(self, work: _Work, row: Any, settings: DesiredChecks) -> None:
        """Check one row, and what it tells of the one before."""
        texts = _Texts(work.texts.get(row.id))
        before = _find_before(work, row)
        known = work.checks.get(before.id) if before is not None else None
        if before is not None and known is None:
            known = read_checks(work.connection, [before.id]).get(before.id)
        if before is not None and not _is_named(row) and not texts.has_history:
            # Others may have asked the very same; nothing says that it is the same person.
            follows = False
        else:
            follows = known is not None
        turn = self._count_session(work, row, before if follows else None, known)
        is_new_today = known is None or _day(before) != _day(row)
        generated = row.cache in GENERATED
        counted = is_new_today and generated
        flags = COUNTED if counted else 0
        total = work.sum_of(row)
        _count(total, "abandoned", row.error == GONE, counted)
        if row.error is None:
            faults = detect(
                Seen(
                    row.completion_tokens, row.max_tokens, texts.asked, texts.choices, texts.wanted,
                    texts.finish, self._usual.get(row.deployment),
                )
            )  # fmt: skip
            total.add("checked", 1)
            for name, fault in faults.items():
                if fault is not None:
                    _count(total, name, fault, counted)
            if counted:
                _note_values(work, row, texts)
                if settings.judge is not None and texts.answer:
                    _choose_for_judge(work, row, settings)
                share = self._embedded.get(row.deployment, 1.0)
                wanted = settings.encoder is not None and bool(texts.answer)
                if wanted and draw("vector", str(row.id)) < share:
                    names = ("id", "at_s", "deployment", "version")
                    work.vectors.append({name: getattr(row, name) for name in names})
        else:
            faults = {}
        work.checks[row.id] = Checked(row.id, encode_faults(faults), turn, flags)
        work.before[row.deployment, row.conversation_id] = row
        if follows and before is not None and known is not None:
            _credit(work, before, known, texts)

    def _count_session(self, work: _Work, row: Any, before: Any, known: Checked | None) -> int:
        """Add the row to its session, or begin one; returns its place in there."""
        turn, length_s, returned = 1, row.e2e_ms / 1e3, 0
        if before is not None and known is not None:
            ended_s = before.at_s + before.e2e_ms / 1e3
            if row.at_s - ended_s < SESSION_S:
                turn = known.turn + 1
                length_s = max(0.0, row.at_s + row.e2e_ms / 1e3 - ended_s)
            else:
                returned = 1
        # A turn t adds t^2 - (t-1)^2 to the sum of squared lengths.
        work.sum_of(row).add("session", turn == 1, 1, 2 * turn - 1, length_s, returned)
        return turn


class _Texts:
    """The texts of one response; empty where they are not kept."""

    def __init__(self, row: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.choices: list[dict[str, Any]] | None = None
        self.asked: str | None = None
        self.answer = ""
        self.wanted: Any = None
        self.finish: Sequence[str | None] = ()
        if row is None:
            return
        try:
            self.messages, self.choices = parse_prompt(row.prompt), parse_answer(row.answer)
            facts = msgspec.json.decode(row.facts) if row.facts else {}
            self.wanted = msgspec.json.decode(facts["format"]) if "format" in facts else None
            self.finish = facts.get("finish") or ()
        except (ValueError, TypeError):
            self.messages, self.choices = [], None
            return
        asked = [one.get("content") for one in self.messages if one.get("role") == "user"]
        self.asked = str(asked[-1] or "") if asked else None
        self.answer = "\n".join(str(one.get("content") or "") for one in self.choices)

    @property
    def has_history(self) -> bool:
        """Whether the request holds an earlier answer."""
        return any(one.get("role") == "assistant" for one in self.messages)


def _is_answer(row: Any) -> bool:
    return row.origin in USERS and _is_ended_answer(
        row.endpoint, row.deployment, row.version, row.status, row.error
    )


def _is_ended_answer(
    endpoint: str, deployment: str | None, version: str | None, status: int, error: str | None
) -> bool:
    return (
        endpoint in ENDPOINTS
        and bool(deployment and version)
        and (error == GONE or (error is None and status == 200))
    )


def _choose(
    rows: Sequence[Any],
    room: dict[str, float],
    work: _Work,
    settings: Mapping[str, DesiredChecks],
) -> list[int]:
    """The numbers of the rows (`CHOSEN_BY`) that there is room for, which they take; of more, those
    of some conversations. Of deployments that are gone nothing is checked any more.
    """
    # Most rows of a busy service end here: read by place, which takes a fraction of the time.
    wanted = {name for name, one in settings.items() if one.answers_per_s > 0}
    names: dict[str, list[tuple[int, str]]] = {}
    answered: Counter[Key] = Counter()
    for number, at_s, origin, endpoint, deployment, version, status, error, conversation in rows:
        if deployment not in wanted or origin not in USERS:
            continue
        if not _is_ended_answer(endpoint, deployment, version, status, error):
            continue
        names.setdefault(deployment, []).append((number, conversation or str(number)))
        answered[int(at_s // HOUR_S) * HOUR_S, deployment, version] += error is None
    for key, count in answered.items():
        work.sums.setdefault(key, QualitySum()).add("answers", count)
    kept = []
    for deployment, some in names.items():
        share = max(0.0, room[deployment]) / len(some)
        chosen = [number for number, name in some if share >= 1 or draw("checked", name) < share]
        room[deployment] -= len(chosen)
        kept += chosen
    return kept


def draw(purpose: str, name: str) -> float:
    """A number from 0 to 1 that is the same for the same name."""
    digest = blake2b(f"{purpose}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _find_before(work: _Work, row: Any) -> Any:
    """The request before in the same conversation with the same deployment; None where there is
    none.
    """
    if row.conversation_id is None:
        return None
    known = work.before.get((row.deployment, row.conversation_id))
    if known is not None:
        return known
    asked = {
        "conversation": row.conversation_id, "number": row.id, "name": row.deployment,
        "oldest": max(0, row.id - (int(KEEP_CHECKS_S * 1000) << 22)),
    }  # fmt: skip
    found = work.connection.execute(_BEFORE, asked).fetchall()
    return next((one for one in found if _is_answer(one)), None)


def _is_named(row: Any) -> bool:
    """Whether the request says whose, or which, conversation it belongs to."""
    return bool(row.end_user) or '"session_id"' in (row.tags or "")


def _day(row: Any) -> int:
    return int(row.at_s // DAY_S)


def _count(total: QualitySum, name: str, found: bool, counted: bool) -> None:
    """Count an observation: those that count in shares and their finds, then all and theirs."""
    total.add(name, counted, counted and found, 1, found)


def _credit(work: _Work, before: Any, known: Checked, texts: _Texts) -> None:
    """Note what followed an answer, once, where the answer is."""
    if before.error is not None or known.flags & FOLLOWED:
        return
    row = work.texts.get(before.id) or read_texts_of(work.connection, [before.id]).get(before.id)
    earlier = _Texts(row)
    if earlier.choices is None or not texts.messages:
        return
    kind = compare_requests(earlier.messages, earlier.choices, texts.messages)
    if kind is None:
        return
    total, counted = work.sum_of(before), bool(known.flags & COUNTED)
    for name in KINDS:
        if name != CONTINUED:
            _count(total, name, kind == name, counted)
    _count(total, "accepted", kind == CONTINUED, counted)
    work.checks[known.id] = Checked(known.id, known.faults, known.turn, known.flags | FOLLOWED)


def _note_values(work: _Work, row: Any, texts: _Texts) -> None:
    found: dict[str, float | None] = {
        "prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens,
    }  # fmt: skip
    words = _WORD.findall(texts.answer.lower())
    if len(words) >= SAMPLE_WORDS:
        some = words[:SAMPLE_WORDS]
        found["word_length"] = sum(map(len, some)) / SAMPLE_WORDS
        found["distinct_words"] = len(set(some)) / SAMPLE_WORDS
    values = work.values.setdefault(_key(row), {})
    for name, value in found.items():
        if value is not None:
            values.setdefault(name, []).append(float(value))


def _choose_for_judge(work: _Work, row: Any, settings: DesiredChecks) -> None:
    if draw("judge", str(row.id)) < settings.judge_share:
        work.scores.append(
            {
                "id": row.id, "at_s": row.at_s, "deployment": row.deployment,
                "version": row.version, "judge": name_judge(settings.judge), "score": None,
            }
        )  # fmt: skip


def name_judge(judge: str | Mapping[str, Any] | None) -> str:
    """What a judge is called in the database and shown as."""
    if isinstance(judge, Mapping):
        return f"{judge.get('model')} at {judge.get('url')}"[:255]
    return (judge or "")[:255]


def merge_bytes(first: bytes | None, second: bytes) -> bytes:
    """One sketch of two, as bytes."""
    return merge_sketches([decode_sketch(first), decode_sketch(second)]).encode()


def find_embedded(database: Database, now_s: float) -> dict[str, float]:
    """The share of each deployment's answers that is embedded, by how many there were yesterday, so
    that there are about `VECTORS_A_DAY`. Raises `DatabaseError`.
    """
    yesterday = int(now_s // DAY_S) * DAY_S - DAY_S
    counts: dict[str, float] = {}
    for row in read_sums(database, DAY_S, yesterday):
        if row.at_s == yesterday:
            counted = row.counts.get("abandoned", [0.0])[0]
            counts[row.deployment] = counts.get(row.deployment, 0.0) + counted
    return {name: min(1.0, VECTORS_A_DAY / max(1.0, count)) for name, count in counts.items()}


def find_usual(database: Database, now_s: float) -> dict[str, tuple[float, float] | None]:
    """For each deployment, how many tokens 1 and 99 of 100 answers of the days before today had at
    most; None where too few are known. Raises `DatabaseError`.
    """
    today = int(now_s // DAY_S) * DAY_S
    known: dict[str, list[bytes]] = {}
    for row in read_sums(database, DAY_S, today - USUAL_DAYS * DAY_S):
        if row.at_s < today and "completion_tokens" in row.sketches:
            known.setdefault(row.deployment, []).append(row.sketches["completion_tokens"])
    found: dict[str, tuple[float, float] | None] = {}
    for deployment, datas in known.items():
        sketch = merge_sketches(decode_sketches(datas))
        if sketch.count >= LEAST_USUAL:
            low, high = sketch.quantile(0.01), sketch.quantile(0.99)
            assert low is not None
            assert high is not None
            # A sketch knows a value within a percent; the same value is not beyond itself.
            found[deployment] = (low * 0.98, high * 1.02)
    return found
