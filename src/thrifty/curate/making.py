"""What a model is asked to make of rows, and which of its answers are of use.

    paraphrase        what a user says last, in other words; the answer stays
    back_translation  the same, translated into another language and back (Sennrich et al. 2016,
                      1511.06709)
    evolve            a harder request and an answer to it (Xu et al. 2023, 2304.12244)
    self_instruct     one more request in the manner of some others, and an answer to it (Wang et
                      al. 2022, 2212.10560)
    negatives         for encoders: a text near the query's subject that does not answer it

A wish is one thing to be made. Its first request asks for a text; the second one translates it
back, or answers it. Nothing here asks: requests are JSON, and answers are text.
"""

from __future__ import annotations

import json
import random
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.compress.distill.answers import is_loop
from thrifty.curate.augment_section import LANGUAGES, Augment
from thrifty.curate.clean import find_language
from thrifty.data.augmentation import NEGATIVES, NEW_ROWS, REWORDED
from thrifty.data.noise import KEPT
from thrifty.evaluate.refusals import is_refusal
from thrifty.train.rows import Method, parse_row
from thrifty.train.rows import Row as TrainingRow

Row = dict[str, Any]
Request = dict[str, Any]
Digest = Callable[[int], str]
"""The checksum of a row by its number: 32 hexadecimal digits."""

STYLES = (
    "Write as a person would type it.", "Make it shorter.", "Make it more formal.",
    "Write as somebody in a hurry would.", "Use other words wherever you can.",
    "Put it as an indirect question, or as a request if it is a question.",
    "Begin with what matters most.", "Write as somebody would say it aloud.",
)  # fmt: skip
EVOLUTIONS = (
    "add one more condition that an answer has to meet",
    "ask for the reasons behind it as well",
    "replace a general notion in it by a concrete case",
    "change it so that an answer takes several steps of thought",
    "ask about something rarer in the same field instead",
)
SHOWN_ROWS = 4
"""Rows that a request of `self_instruct` shows."""
ANSWER_TOKENS, TEXT_TOKENS, JUDGE_TOKENS = 768, 512, 8
SHORTEST, LONGEST = 0.3, 3.0
"""How much shorter or longer another wording may be."""
CHARS_PER_TOKEN = 4.0
_PREFACE = re.compile(
    r"\A(?:sure|certainly|of course|here(?: is|'s| are)|okay)\b[^\n]*:\s*\n?|"
    r"\A(?:message|request|passage|translation|rewritten[^:\n]*|new [^:\n]*)\s*:\s*",
    re.IGNORECASE,
)
_QUOTES = (('"', '"'), ("“", "”"), ("«", "»"), ("```", "```"))

REASONS = {
    "refused": "the server refused it, or the answer was cut",
    "empty": "nothing was said",
    "loop": "it repeats itself",
    "unwilling": "the model said that it cannot",
    "same": "it has the words of what was there",
    "facts": "a name, a number or a piece of code was lost",
    "length": "it is far shorter or longer",
    "language": "it is in another language than it should be",
    "judge": "the judge said no",
    "unclear": "the judge said neither yes nor no",
    "meaning": "the encoder finds another meaning",
    "duplicate": "it says what another row says",
    "held_out": "it says what a held-out row says",
    "leak": "it holds what models are judged by",
    "form": "it makes no row",
}
"""Why something that was made is dropped."""


@dataclass(frozen=True)
class Wish:
    """One thing to be made."""

    method: str
    rows: tuple[int, ...]
    """The numbers of the rows that it is made from, the first of which gives the context."""
    drawn_from: str
    """The checksums of these rows, from which what is random is drawn: numbers change with the rows
    before."""
    number: int
    """Which of several of the same method and rows."""
    how: str = ""
    """The style, the language or the evolution."""


def plan_wishes(
    numbers: Sequence[int], digest: Digest, wanted: Augment, seed: int
) -> Iterator[Wish]:
    """What is asked of the rows with these numbers, but for `self_instruct`."""
    for row in numbers:
        own, key = (row,), digest(row)
        draw = random.Random(f"{seed} {key}")
        if wanted.paraphrase is not None:
            for n, style in enumerate(draw.sample(STYLES, wanted.paraphrase.forms)):
                yield Wish("paraphrase", own, key, n, style)
        if wanted.back_translation is not None:
            for n, language in enumerate(wanted.back_translation.languages):
                yield Wish("back_translation", own, key, n, language)
        if wanted.evolve is not None and draw.random() < wanted.evolve.share:
            yield Wish("evolve", own, key, 0, draw.choice(EVOLUTIONS))
        if wanted.negatives is not None:
            for n in range(wanted.negatives.count):
                yield Wish(NEGATIVES, own, key, n)


def plan_requests(
    numbers: Sequence[int], digest: Digest, wanted: Augment, seed: int
) -> Iterator[Wish]:
    """The wishes of `self_instruct`, each of some rows.

    Each draws checksums, and takes the rows whose own follow them: with a row more or less, nearly
    all wishes stay what they were.
    """
    if wanted.self_instruct is None:
        return
    ring = sorted({digest(row): row for row in numbers}.items())
    for n in range(wanted.self_instruct.rows if ring else 0):
        draw = random.Random(f"{seed} self-instruct {n}")
        chosen: dict[str, int] = {}
        while len(chosen) < min(SHOWN_ROWS, len(ring)):
            at = bisect(ring, (f"{draw.getrandbits(128):032x}",))
            chosen.update([ring[at % len(ring)]])
        yield Wish("self_instruct", tuple(chosen.values()), " ".join(chosen), n)


# Rows


def find_asked(row: Row) -> str | None:
    """What the user says last before what is learned; None where there is nothing to change."""
    if "query" in row:
        return str(row["query"])
    place = _find_place(row)
    return None if place is None else str(row[place[0]][place[1]]["content"])


def _find_place(row: Row) -> tuple[str, int] | None:
    part = "messages" if "messages" in row else "prompt"
    messages = row[part]
    for at in reversed(range(len(messages))):
        one = messages[at]
        if one["role"] == "user" and isinstance(one.get("content"), str) and one["content"].strip():
            return part, at
    return None


def reword(row: Row, text: str) -> Row:
    """The fields of a row in which the user says another text last."""
    if "query" in row:
        return {"query": text}
    part, at = _find_place(row) or ("messages", 0)
    messages = list(row[part])
    messages[at] = {**messages[at], "content": text}
    return {part: messages}


def can_be_answered(row: Row) -> bool:
    """Whether a new answer can take the place of the row's: no tools, and the answer is the last
    message.
    """
    if row.get("tools") or "messages" not in row:
        return False
    place = _find_place(row)
    return place is not None and place[1] == len(row["messages"]) - 2


def find_key(row: Row, kind: str) -> str:
    """What a training knows the row's prompt by (`train.rows.Row.key`)."""
    plain = {name: value for name, value in row.items() if name != "made"}
    found = parse_row(json.dumps(plain).encode(), 0, Method(kind))
    return found.key if isinstance(found, TrainingRow) else ""


# Requests


def ask_first(wish: Wish, rows: Sequence[Row], seed: int) -> Request | None:
    """The request for the text; None where the row has nothing to make it of."""
    asked = find_asked(rows[0])
    if asked is None or (wish.method == "evolve" and not can_be_answered(rows[0])):
        return None
    if wish.method == "paraphrase":
        said = (
            "Rewrite the message below in other words. Keep its meaning, its language, and every "
            f"name, number and piece of code. {wish.how} Reply with the new message alone.\n\n"
            f"Message:\n{asked}"
        )
    elif wish.method == "back_translation":
        said = _translate(asked, wish.how)
    elif wish.method == "evolve":
        said = (
            f"Below is what a user asks an assistant. Change it: {wish.how}. Keep its language. It "
            "must be complete in itself and possible to answer in text. Reply with the new request "
            f"alone.\n\nRequest:\n{asked}"
        )
    elif wish.method == "self_instruct":
        shown = [find_asked(row) for row in rows]
        listed = "\n\n".join(f"Request {n}:\n{text}" for n, text in enumerate(shown, 1) if text)
        said = (
            "Users sent these requests to an assistant:\n\n"
            + listed
            + "\n\nWrite one more request "
            "of the same kind, in the same language, about another matter. It must be complete in "
            "itself. Reply with the request alone."
        )
    else:
        said = (
            f"Query:\n{asked}\n\nA passage that answers it:\n{rows[0]['positive']}\n\nWrite another "
            "passage of about that length, on the same subject and in the same language, that looks "
            "like an answer to the query and is none: about another fact, time, place or thing. "
            "Reply with the passage alone."
        )
    return _make_request(said, wish, seed, TEXT_TOKENS)


def ask_second(wish: Wish, rows: Sequence[Row], text: str, seed: int) -> Request | None:
    """The request that follows the first one's text; None where that is all."""
    if wish.method == "back_translation":
        language = find_language(find_asked(rows[0]) or "")[0]
        return _make_request(_translate(text, language), wish, seed, TEXT_TOKENS)
    if wish.method in NEW_ROWS:
        messages = make_prompt(wish, rows, text)
        return {"messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0.7,
                "seed": _draw_seed(wish, seed)}  # fmt: skip
    return None


def make_prompt(wish: Wish, rows: Sequence[Row], text: str) -> list[dict[str, Any]]:
    """The messages before the answer of a new row."""
    messages = rows[0]["messages"]
    if wish.method == "evolve":
        return list(reword(rows[0], text)["messages"][:-1])
    systems = [one for one in messages if one["role"] in ("system", "developer")]
    return [*systems, {"role": "user", "content": text}]


def ask_judge(wish: Wish, rows: Sequence[Row], text: str, answer: str) -> Request:
    """The question whether what was made is what was asked for, and that yes or no answers."""
    asked = find_asked(rows[0])
    if wish.method in REWORDED:
        said = (
            f"Message A:\n{asked}\n\nMessage B:\n{text}\n\nDo both messages ask for the same thing, so "
            "that one answer serves both?"
        )
    elif wish.method == NEGATIVES:
        said = (
            f"Query:\n{asked}\n\nPassage:\n{text}\n\nDoes the passage leave the query unanswered?"
        )
    else:
        said = (
            f"Request:\n{text}\n\nAnswer:\n{answer}\n\nIs the request clear, and does the answer do "
            "what it asks for, without mistakes?"
        )
    messages = [{"role": "user", "content": f"{said} Reply with yes or no alone."}]
    return {"messages": messages, "max_tokens": JUDGE_TOKENS, "temperature": 0, "seed": 0}


def _translate(text: str, language: str) -> str:
    name = LANGUAGES.get(language, "English")
    return (
        f"Translate the message below into {name}. Keep every name, number and piece of code. Reply "
        f"with the translation alone.\n\nMessage:\n{text}"
    )


def _make_request(said: str, wish: Wish, seed: int, most: int) -> Request:
    return {"messages": [{"role": "user", "content": said}], "max_tokens": most,
            "temperature": 0.9, "seed": _draw_seed(wish, seed)}  # fmt: skip


def _draw_seed(wish: Wish, seed: int) -> int:
    return random.Random(f"{seed} {wish.method} {wish.drawn_from} {wish.number}").randrange(2**31)


# Answers


def strip_answer(text: str) -> str:
    """An answer without what models like to put around it: a preface, or quotation marks."""
    said = _PREFACE.sub("", text.strip(), count=1).strip()
    for opening, closing in _QUOTES:
        inner = said[len(opening) : -len(closing)]
        if (
            said.startswith(opening) and said.endswith(closing)
            and len(said) > len(opening + closing) and opening not in inner
        ):  # fmt: skip
            said = inner.strip()
    return said


def find_fault(wish: Wish, rows: Sequence[Row], text: str | None) -> str | None:
    """Why the text of a first request is of no use (a key of `REASONS`); None where it may be."""
    if text is None:
        return "refused"
    if not text:
        return "empty"
    if is_loop(text):
        return "loop"
    asked = find_asked(rows[0]) or ""
    if is_refusal(text) and not is_refusal(asked):
        return "unwilling"
    if wish.method == "back_translation":
        language, sure = find_language(text)
        return "language" if sure >= 0.5 and language != wish.how else None
    known = [find_asked(row) or "" for row in rows]
    if wish.method == NEGATIVES:
        known += [rows[0]["positive"], *rows[0].get("negatives", ())]
    if any(fold(text) == fold(one) for one in known):
        return "same"
    if wish.method in REWORDED:
        return find_wording_fault(asked, text)
    return None


def find_wording_fault(before: str, after: str) -> str | None:
    """Why a text is no other wording of another one."""
    if not after:
        return "empty"
    if fold(before) == fold(after):
        return "same"
    if not SHORTEST <= len(after) / max(1, len(before)) <= LONGEST:
        return "length"
    lost = any(
        one[0].strip(".,;:!?()\"'") not in after for one in KEPT.finditer(before)
    )  # fmt: skip
    if lost:
        return "facts"
    first, second = find_language(before), find_language(after)
    unlike = first[0] != second[0] and min(first[1], second[1]) >= 0.6
    return "language" if unlike else None


def fold(text: str) -> str:
    """A text without what two wordings may differ by and still be one: case, marks, spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def read_verdict(reply: str | None) -> str | None:
    """Why a judge does not let something pass; None where it does."""
    word = re.match(r"\W*(\w+)", (reply or "").lower())
    if word is None or word[1] not in ("yes", "no"):
        return "unclear"
    return None if word[1] == "yes" else "judge"


def estimate_tokens(request: Request) -> tuple[float, float]:
    """About how many tokens a request has, and how many its answer: as many as it repeats."""
    read = sum(len(one["content"] or "") for one in request["messages"]) / CHARS_PER_TOKEN
    most = float(request["max_tokens"])
    return read + 8, min(most, 2.0 if most == JUDGE_TOKENS else max(24.0, 0.6 * read))
