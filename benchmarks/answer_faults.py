"""How often the detectors of broken answers err: on good text, and on text that is broken on purpose.

    python benchmarks/answer_faults.py

Good: the answers of fetched conversations (`chat`, `chat-learn`, `questions-learn`), beside their own
questions; among them lists, tables, code and verse, which are also counted apart; source code and pages.
Broken: the same answers beside other questions; the same answers, ended by a loop that begins where an
answer is cut off; a list of one repeated item.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from common import WORK, finish, say
from thrifty.artifacts import Store
from thrifty.data import fetch_set
from thrifty.evaluate.answer_faults import find_faults, is_loop

HOME = WORK / "compression"
CONVERSATIONS = ("chat", "chat-learn", "questions-learn")
TEXTS = ("code", "web")
FORMS: dict[str, Callable[[str], object]] = {
    "a list": lambda text: len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s", text, re.MULTILINE)) >= 3,
    "a table": lambda text: len(re.findall(r"^\|.*\|", text, re.MULTILINE)) >= 3,
    "code": lambda text: (
        "```" in text or re.search(r"^(?:def|import|#include|SELECT)\b", text, re.M)
    ),
    "short lines (verse)": lambda text: (
        len(lines := [one for one in text.splitlines() if one.strip()]) >= 6
        and max(map(len, lines)) < 60
    ),
}


def read_pairs(path: Path) -> list[tuple[list[str], str]]:
    """What was said before, and the assistant's first answer; of each conversation."""
    found = []
    for line in path.read_text().splitlines():
        messages = json.loads(line)["messages"]
        at = next((n for n, one in enumerate(messages) if one["role"] == "assistant"), 0)
        answer = messages[at].get("content")
        if at and isinstance(answer, str) and answer.strip():
            asked = [one["content"] for one in messages[:at] if isinstance(one["content"], str)]
            found.append((asked, answer))
    return found


def share(marks: Sequence[bool]) -> str:
    """A count and what it is of."""
    return f"{sum(marks)} of {len(marks)}" + (f" ({sum(marks) / len(marks):.2%})" if marks else "")


def break_end(text: str, draw: random.Random) -> str:
    """The beginning of a text, then its last sentence or so again and again."""
    words = text.split()
    begin = draw.randrange(4, max(5, min(60, len(words))))
    unit = words[max(0, begin - draw.randrange(1, 16)) : begin] or ["so"]
    return " ".join([*words[:begin], *(unit * 40)])[:700]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    store = Store(HOME / "models")
    rows: list[tuple[str, ...]] = [("text", "cases", "empty", "loop", "ignored")]
    pairs: list[tuple[list[str], str]] = []
    for name in CONVERSATIONS:
        say(f"reading {name}")
        pairs += read_pairs(fetch_set(name, HOME / "data", store))

    def judge(label: str, cases: Sequence[tuple[list[str], str]]) -> None:
        faults = [find_faults(answer, asked=asked) for asked, answer in cases]
        marks = [share([kind in one for one in faults]) for kind in ("empty", "loop", "ignored")]
        rows.append((label, str(len(cases)), marks[0], marks[1], marks[2]))

    judge("good answers", pairs)
    for form, fits in FORMS.items():
        judge(f"  with {form}", [one for one in pairs if fits(one[1])])
    for name in TEXTS:
        lines = fetch_set(name, HOME / "data", store).read_text().splitlines()
        texts = [json.loads(line)["text"][:800] for line in lines]
        rows.append((f"good {name}", str(len(texts)), "", share([is_loop(t) for t in texts]), ""))
    others = [one for one in pairs if len(one[1].split()) >= 8]
    answers = [answer for _, answer in others]
    draw.shuffle(answers)
    judge(
        "broken: another's answer",
        [(asked, a) for (asked, _), a in zip(others, answers, strict=True)],
    )
    judge("broken: ends in a loop", [(asked, break_end(a, draw)) for asked, a in others])
    repeated = [
        (asked, "\n".join(f"{n}. {' '.join(a.split()[:12])}" for n in range(1, 9)))
        for asked, a in others
    ]
    judge("broken: one item as a list", repeated)
    record = {
        "rows": [dict(zip(rows[0], row, strict=True)) for row in rows[1:]],
        "seed": options.seed,
    }
    finish("answer_faults", record, rows, [], save=not options.no_save)


if __name__ == "__main__":
    main()
