"""The stage of a build in which a model makes other forms of the rows that are learned.

Rows that are held out are neither changed nor shown to the model. A few wishes of each method are
tried first, so that a model that cannot do it is noticed before it has answered thousands. What was
made is checked by rules, by a judge and by an encoder if there is one. It is kept apart from all
rows, from what is held out, and from what models are judged by.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thrifty.curate.augment_section import Augment
from thrifty.curate.history import join_named
from thrifty.curate.leaks import Item, LeakIndex, find_leaks, make_index
from thrifty.curate.making import (
    ANSWER_TOKENS,
    Digest,
    Wish,
    ask_first,
    ask_judge,
    ask_second,
    estimate_tokens,
    find_asked,
    find_fault,
    find_key,
    find_wording_fault,
    fold,
    make_prompt,
    plan_requests,
    plan_wishes,
    read_verdict,
    reword,
    strip_answer,
)
from thrifty.curate.sketch import find_words
from thrifty.curate.teacher import Request, Teacher
from thrifty.curate.vectors import embed_texts
from thrifty.data.augmentation import NEGATIVES, NEW_ROWS, REWORDED
from thrifty.data.overlap import SHORTEST_WORDS
from thrifty.errors import DataError
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.refusals import is_refusal

PILOT, LEAST_USABLE = 24, 0.2
"""So many wishes of a method are tried first; with a smaller share of use, the build ends."""
CHUNK = 1000
"""Wishes that are in memory, or in a batch, at once."""
SAMPLE = 100
"""Wishes by which the cost is estimated."""
SAMPLES, SAMPLE_CHARS = 3, 300

Row = dict[str, Any]
ReadRow = Callable[[int], Row]


@dataclass(frozen=True)
class Learned:
    """The rows that are learned, and those that are held out, by their numbers."""

    kind: str
    numbers: Sequence[int]
    held_out: Sequence[int]
    read: ReadRow
    digest: Digest
    seed: int
    leaks: LeakIndex | None
    """What models are judged by."""
    measure: Callable[[Row], int | None]
    """The length of a row, or None where it may not be in the set."""


@dataclass
class Made:
    """What became of it."""

    model: str = ""
    forms: dict[int, list[Row]] = field(default_factory=dict)
    """By the number of a row: what stands in it under `made`."""
    rows: list[Row] = field(default_factory=list)
    """New rows."""
    asked: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    """By method, by reason."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    estimate: dict[str, Any] = field(default_factory=dict)

    def drop(self, wish: Wish, reason: str, text: str | None, row: Row) -> None:
        """Count what is of no use, and keep the first few of each reason."""
        counts = self.dropped.setdefault(wish.method, Counter())
        counts[reason] += 1
        if counts[reason] <= SAMPLES:
            self.samples.append({
                "stage": "augment", "reason": f"{wish.method}: {reason}",
                "text": (text or "")[:SAMPLE_CHARS], "kept": (find_asked(row) or "")[:SAMPLE_CHARS],
                "provenance": row["provenance"], "kept_provenance": row["provenance"],
            })  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For the report and the manifest."""
        return {
            "model": self.model, "asked": dict(self.asked), "kept": dict(self.kept),
            "dropped": {name: dict(one.most_common()) for name, one in self.dropped.items()},
            "estimate": self.estimate,
        }  # fmt: skip


@dataclass
class _Draft:
    """A wish on its way."""

    wish: Wish
    rows: list[Row]
    text: str = ""
    answer: str = ""


def list_wishes(learned: Learned, wanted: Augment) -> Iterator[Wish]:
    """All that is to be made."""
    yield from plan_wishes(learned.numbers, learned.digest, wanted, learned.seed)
    yield from plan_requests(learned.numbers, learned.digest, wanted, learned.seed)


def estimate(learned: Learned, wanted: Augment) -> dict[str, Any]:
    """About how many requests, tokens and how much money it takes: `{"requests", "tokens_read",
    "tokens_written", "cost"}`. Tokens are counted at four characters each, over some of the wishes.
    """
    wishes = list(list_wishes(learned, wanted))
    some = random.Random(learned.seed).sample(wishes, min(SAMPLE, len(wishes)))
    count, read, written = 0, 0.0, 0.0
    for wish in some:
        rows = [learned.read(number) for number in wish.rows]
        first = ask_first(wish, rows, learned.seed)
        if first is None:
            continue
        asked = find_asked(rows[0]) or ""
        requests = [first]
        if wish.method in NEW_ROWS:
            answer = str(rows[0]["messages"][-1].get("content") or "")
            requests.append(
                {"messages": make_prompt(wish, rows, asked), "max_tokens": ANSWER_TOKENS}
            )
            written += len(answer) / 4 - estimate_tokens(requests[-1])[1]
        elif wish.method == "back_translation":
            requests.append(first)
        if wanted.judge:
            requests.append(ask_judge(wish, rows, asked, asked))
        count += len(requests)
        for one in requests:
            tokens = estimate_tokens(one)
            read, written = read + tokens[0], written + tokens[1]
    scale = len(wishes) / max(1, len(some))
    price = wanted.price
    read, written = read * scale, max(0.0, written * scale)
    return {
        "requests": round(count * scale), "tokens_read": round(read),
        "tokens_written": round(written),
        "cost": round((read * price.read + written * price.written) / 1e6, 4),
    }  # fmt: skip


def make_others(
    learned: Learned,
    wanted: Augment,
    teacher: Teacher,
    embedder: Embedder | None,
    on_note: Callable[[str], None],
    judge: Teacher | None = None,
) -> Made:
    """Have the model make what is wanted, and keep what is of use. `judge` is asked about it in the
    model's place. Blocks. Raises `DataError`.
    """
    made = Made(teacher.place.label, estimate=estimate(learned, wanted))
    expected = made.estimate
    cost = f", {expected['cost']:g} at the price given" if expected["cost"] else ""
    on_note(
        f"augment: about {expected['requests']:,} requests to {made.model}: "
        f"{expected['tokens_read']:,} tokens read, {expected['tokens_written']:,} written{cost}"
    )
    maker = _Maker(learned, wanted, teacher, judge or teacher, embedder)
    wishes = list(list_wishes(learned, wanted))
    for method in wanted.methods:
        mine = [one for one in wishes if one.method == method]
        pilot = random.Random(learned.seed).sample(mine, min(PILOT, len(mine)))
        trial = Made(made.model)
        maker.make(pilot, trial, _Known(maker.known))
        try:
            _refuse_garbage(method, trial)
        except DataError:
            teacher.end()
            raise
        for start in range(0, len(mine), CHUNK):
            maker.make(mine[start : start + CHUNK], made, maker.known)
        counts = made.dropped.get(method, Counter())
        why = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
        dropped = f"{counts.total()} dropped" + (f" ({why})" if why else "")
        on_note(f"augment: {method}: {made.kept[method]} kept, {dropped}")
    return made


def _refuse_garbage(method: str, trial: Made) -> None:
    asked, kept = trial.asked[method], trial.kept[method]
    if asked < PILOT or kept >= LEAST_USABLE * asked:
        return
    counts = trial.dropped[method].most_common(3)
    shown = next((one["text"] for one in trial.samples if one["text"]), "")
    raise DataError(
        f"augment.{method}: of the first {asked} things that {trial.model} made, {asked - kept} are of "
        f"no use ({', '.join(f'{number} {reason}' for reason, number in counts)})"
        + (f", such as {shown[:120]!r}" if shown else "")
        + f". Name another 'model', or leave '{method}' out"
    )


class _Known:
    """What rows and what was made say, so that nothing is made twice."""

    def __init__(self, other: _Known | None = None) -> None:
        self.folded: set[str] = set() if other is None else set(other.folded)
        self.index: LeakIndex | None = None if other is None else other.index

    def holds(self, text: str) -> bool:
        """Whether a text says what is known."""
        return fold(text) in self.folded or _leaks(self.index, text)


def _leaks(index: LeakIndex | None, text: str) -> bool:
    return index is not None and index.count > 0 and bool(find_leaks(index, find_words([text])))


class _Maker:
    """Makes wishes, some at a time."""

    def __init__(
        self, learned: Learned, wanted: Augment, teacher: Teacher, judge: Teacher,
        embedder: Embedder | None,
    ) -> None:  # fmt: skip
        self._learned, self._wanted, self._teacher = learned, wanted, teacher
        self._asked_to_judge, self._embedder = judge, embedder
        self._held_out = self._index(learned.held_out)
        new_rows = any(name in NEW_ROWS for name in wanted.methods)
        self.known = self._index(learned.numbers, parts=new_rows)

    def _index(self, numbers: Sequence[int], *, parts: bool = True) -> _Known:
        """What these rows ask: as a whole, and with `parts` the sequences of words in it."""
        known = _Known()
        texts = [find_asked(self._learned.read(number)) or "" for number in numbers]
        known.folded = {fold(text) for text in texts}
        long = [text for text in texts if parts and len(fold(text).split()) >= SHORTEST_WORDS]
        if long:
            known.index = make_index(Item("rows", str(n), text) for n, text in enumerate(long))
        return known

    def make(self, wishes: Sequence[Wish], made: Made, known: _Known) -> None:
        """Ask for these, and put what is of use into `made`."""
        drafts = []
        for wish in wishes:
            rows = [self._learned.read(number) for number in wish.rows]
            request = ask_first(wish, rows, self._learned.seed)
            if request is not None:
                made.asked[wish.method] += 1
                drafts.append((_Draft(wish, rows), request))
        if not drafts:
            return
        self._ask_texts(drafts, made)
        alive = [draft for draft, _ in drafts if draft.text]
        alive = self._ask_again(alive, made)
        alive = self._compare(alive, made)
        alive = self._judge(alive, made)
        for draft in alive:
            self._keep(draft, made, known)

    def _ask(self, requests: list[Request], what: str) -> list[str | None]:
        return self._teacher.ask(requests, what)

    def _ask_texts(self, drafts: Sequence[tuple[_Draft, Request]], made: Made) -> None:
        answers = self._ask([request for _, request in drafts], drafts[0][0].wish.method)
        for (draft, _), answer in zip(drafts, answers, strict=True):
            text = None if answer is None else strip_answer(answer)
            fault = find_fault(draft.wish, draft.rows, text)
            if fault is None and draft.wish.method != "back_translation":
                fault = self._find_clash(text or "")
            if fault is not None:
                made.drop(draft.wish, fault, text, draft.rows[0])
            else:
                draft.text = text or ""

    def _find_clash(self, text: str) -> str | None:
        if self._held_out.holds(text):
            return "held_out"
        return "leak" if _leaks(self._learned.leaks, text) else None

    def _ask_again(self, drafts: list[_Draft], made: Made) -> list[_Draft]:
        """The second requests: translations back, and answers."""
        asked = [
            (draft, request) for draft in drafts
            if (request := ask_second(draft.wish, draft.rows, draft.text, self._learned.seed)) is not None
        ]  # fmt: skip
        if not asked:
            return drafts
        answers = self._ask([request for _, request in asked], asked[0][0].wish.method)
        alive = []
        for (draft, _), answer in zip(asked, answers, strict=True):
            fault = self._take_second(draft, answer)
            if fault is None:
                alive.append(draft)
            else:
                made.drop(draft.wish, fault, answer, draft.rows[0])
        return alive

    def _take_second(self, draft: _Draft, answer: str | None) -> str | None:
        if draft.wish.method == "back_translation":
            draft.text = strip_answer(answer or "")
            fault = find_wording_fault(find_asked(draft.rows[0]) or "", draft.text)
            return fault or self._find_clash(draft.text)
        draft.answer = answer or ""
        if answer is None:
            return "refused"
        if not answer or is_refusal(answer):
            return "unwilling" if answer else "empty"
        return "leak" if _leaks(self._learned.leaks, answer) else None

    def _compare(self, drafts: list[_Draft], made: Made) -> list[_Draft]:
        """Other wordings that an encoder finds to mean the same."""
        mine = [draft for draft in drafts if draft.wish.method in REWORDED]
        if self._embedder is None or not mine:
            return drafts
        before = embed_texts(self._embedder, [find_asked(one.rows[0]) or "-" for one in mine])
        after = embed_texts(self._embedder, [one.text for one in mine])
        likeness = np.sum(before * after, axis=1)
        gone = set()
        for draft, value in zip(mine, likeness.tolist(), strict=True):
            if value < self._wanted.similarity:
                made.drop(draft.wish, "meaning", draft.text, draft.rows[0])
                gone.add(id(draft))
        return [draft for draft in drafts if id(draft) not in gone]

    def _judge(self, drafts: list[_Draft], made: Made) -> list[_Draft]:
        if not self._wanted.judge or not drafts:
            return drafts
        requests = [ask_judge(one.wish, one.rows, one.text, one.answer) for one in drafts]
        alive = []
        replies = self._asked_to_judge.ask(requests, "judge answers")
        for draft, reply in zip(drafts, replies, strict=True):
            fault = read_verdict(reply)
            if fault is None:
                alive.append(draft)
            else:
                made.drop(draft.wish, fault, draft.text, draft.rows[0])
        return alive

    def _keep(self, draft: _Draft, made: Made, known: _Known) -> None:
        wish, first = draft.wish, draft.rows[0]
        said = {"method": wish.method, "model": made.model}
        if wish.method in NEW_ROWS:
            fault = self._add_row(draft, made, known)
            if fault is not None:
                made.drop(wish, fault, draft.text, first)
                return
        else:
            forms = made.forms.setdefault(wish.rows[0], [])
            negative = wish.method == NEGATIVES
            others = {fold(one["negatives"][0]) for one in forms if "negatives" in one}
            if fold(draft.text) in (others if negative else known.folded):
                made.drop(wish, "duplicate", draft.text, first)
                return
            if negative:
                forms.append({**said, "negatives": [draft.text]})
            else:
                known.folded.add(fold(draft.text))
                how = {"through": wish.how} if wish.method == "back_translation" else {}
                forms.append({**said, **how, **reword(first, draft.text)})
        made.kept[wish.method] += 1

    def _add_row(self, draft: _Draft, made: Made, known: _Known) -> str | None:
        wish = draft.wish
        if known.holds(draft.text):
            return "duplicate"
        prompt = make_prompt(wish, draft.rows, draft.text)
        row: Row = {"messages": [*prompt, {"role": "assistant", "content": draft.answer}]}
        length = self._learned.measure(row)
        if length is None or not find_key(row, self._learned.kind):
            return "form"
        row["provenance"] = describe_row(wish, draft.rows, made.model, self._learned.kind)
        known.folded.add(fold(draft.text))
        made.rows.append(row)
        return None


def describe_row(wish: Wish, rows: Sequence[Row], model: str, kind: str) -> Row:
    """The history of a new row: that of the rows that it was made from, and how. It is of all the
    persons that these are of, so that none is forgotten without it, and of their feedback: nobody
    judged the turns that it takes over from them.
    """
    known = [row["provenance"] for row in rows]
    return {
        "source": known[0]["source"], "path": known[0]["path"], "line": known[0]["line"],
        "sha256": known[0]["sha256"], **join_named(known),
        "made": {
            "method": wish.method, "model": model,
            "rows": [{name: one[name] for name in ("path", "line", "sha256")} for one in known],
            "keys": [find_key(row, kind) for row in rows],
        },
    }  # fmt: skip
