"""What it costs to check recorded answers, at the capacity that the spec sets.

    python benchmarks/answer_checks.py [--answers 20000]

Answers of some 150 words, a third of them in conversations that go on, a tenth with a JSON schema, and
some that are broken (empty, repeated, cut off), are written with their texts as gateways write them.
The checker of the controller then works them off, on one core, in the steps that it takes while a
service runs. `quality.answers` (50 a second by itself) times the processor time of one answer is the
share of a core that the checks take at capacity; `--answers` are checked in each round.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, parse_arguments, say, show_spread, spread
from thrifty.db import open_database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.response_ids import EPOCH_S
from thrifty.quality.check import AnswerChecker

CAPACITY = DesiredChecks().answers_per_s
NAME = "assistant"
BATCH = 512
WORDS = [
    "the",
    "model",
    "answers",
    "a",
    "question",
    "about",
    "rivers",
    "towns",
    "people",
    "and",
    "history",
    "with",
    "some",
    "care",
    "because",
    "whoever",
    "reads",
    "it",
    "wants",
    "to",
    "know",
    "where",
    "something",
    "is",
    "how",
    "old",
    "it",
    "became",
    "who",
    "made",
    "it",
    "and",
    "why",
    "that",
    "was",
    "so",
    "in",
    "those",
    "years",
    "before",
    "bridges",
    "roads",
    "schools",
    "markets",
    "and",
    "ships",
    "came",
    "to",
    "the",
    "valley",
]


def make_text(chance: random.Random, words: int) -> str:
    """Sentences without a meaning, as long as an answer is."""
    made, sentence = [], 0
    for _ in range(words):
        sentence += 1
        word = chance.choice(WORDS)
        made.append(word.capitalize() if sentence == 1 else word)
        if sentence > 6 and chance.random() < 0.15:
            made[-1] += "."
            sentence = 0
    return " ".join(made)


def make_entries(count: int, seed: int) -> list[Entry]:
    """Answers of the last hour, with their texts."""
    chance = random.Random(seed)
    begin_s = time.time() - 3000.0
    history: dict[int, list[dict[str, Any]]] = {}
    entries = []
    for number in range(count):
        at_s = begin_s + 2900.0 * number / count
        talk = chance.randrange(count) if number % 3 else max(0, number - 1)
        messages = history.setdefault(talk, [])
        messages = [*messages, {"role": "user", "content": make_text(chance, 30)}]
        answer, finish_reason, facts = make_text(chance, 150), "stop", {}
        kind = number % 40
        if kind == 0:
            answer = ""
        elif kind == 1:
            answer = "and so on " * 120
        elif kind == 2:
            finish_reason = "length"
        elif kind % 10 == 5:
            schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
            wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            facts["format"] = json.dumps(wanted)
            answer = json.dumps({"a": answer}) if kind != 15 else answer
        facts["finish"] = [finish_reason]
        history[talk] = [*messages, {"role": "assistant", "content": answer}][-6:]
        row = dict.fromkeys(COLUMNS)
        row |= {
            "id": (int((at_s - EPOCH_S) * 1000) << 22) + number % 4096, "at_s": at_s, "origin": "client",
            "endpoint": "/v1/chat/completions", "deployment": NAME, "version": "stable",
            "status": 200, "stream": True, "cache": "miss", "attempts": 1, "prompt_tokens": 60,
            "completion_tokens": len(answer.split()), "max_tokens": 400, "e2e_ms": 900.0,
            "conversation_id": f"c{seed}-{talk}", "end_user": f"u{talk % 500}", "tenant": "shop",
        }  # fmt: skip
        text = (json.dumps(messages), answer, json.dumps(facts))
        entries.append(Entry(tuple(row[name] for name in COLUMNS), text))
    return entries


def measure(count: int, seed: int) -> dict[str, float]:
    """Write `count` answers and check all of them."""
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{Path(folder)}/checks.db", migrate=True)
        log, entries = RequestLog(database), make_entries(count, seed)
        for start in range(0, count, BATCH):
            assert not log.write(entries[start : start + BATCH])
        Roller(database).catch_up()  # it passes on which rows are new
        settings = {NAME: DesiredChecks(answers_per_s=1e9)}
        checker = AnswerChecker(database)
        begun_s, core_s, checked = time.perf_counter(), time.process_time(), 0
        while (done := checker.step(settings)) is not None:
            checked += done
        wall_s, core_s = time.perf_counter() - begun_s, time.process_time() - core_s
        database.close()
    assert checked == count, (checked, count)
    return {"answers": checked, "wall_s": wall_s, "core_s": core_s}


def main() -> None:
    options = parse_arguments(
        __doc__ or "", 5, answers=(int, 20_000, "Answers to check in each round.")
    )
    measure(500, 0)  # imports and caches
    rounds = []
    for number in range(options.rounds):
        rounds.append(measure(options.answers, number + 1))
        say(f"round {number + 1} of {options.rounds} done")
    each_ms = [one["core_s"] / one["answers"] * 1000 for one in rounds]
    shares = [one / 1000 * CAPACITY for one in each_ms]
    rates = [one["answers"] / one["core_s"] for one in rounds]
    finish(
        "answer_checks",
        {"rounds": rounds, "capacity_per_s": CAPACITY, "core_ms": spread(each_ms)},
        [
            ("figure", "median (range)"),
            ("processor time of one answer, ms", show_spread(each_ms, "{:.3f}")),
            ("answers a second, one core", show_spread(rates, "{:,.0f}")),
            (f"share of a core at {CAPACITY:g} answers a second", show_spread(shares, "{:.1%}")),
        ],
        [
            {
                "figure": f"checks of answers at their capacity ({CAPACITY:g} answers a second)",
                "measured": f"{show_spread(shares, '{:.1%}')} of a core",
                "bar": "stated", "met": True,
            }
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
