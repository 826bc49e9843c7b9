"""Rows that a model learns from: read from JSON lines, checked, and set aside where they are bad.

    sft   {"messages", "tools"?}                    conversations; the assistant's turns are learned
    dpo   {"messages", "chosen", "rejected"}        two answers to the same messages
    kto   {"messages", "completion", "label"}       an answer that is liked (true) or not (false)
    contrastive  {"query", "positive", "negatives"?}    texts for encoders; {"texts": [A, B]} is a
                                                    query with its positive, too

`prompt` may stand for `messages` where an answer follows. An answer is a text, a message, or a list
with one message. `tools` and `chat_template_kwargs` are those of the request. A message of the
assistant with `"weight": 0` is context; in rows that were made from feedback, all turns are but the
last, because nobody judged them.

What models made of a row stands in it under `made`: other wordings of its prompt, and texts that do
not belong to its query. Rows that they made anew say so in their provenance (`curate.made`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from thrifty.data.augmentation import MADE, NEGATIVES
from thrifty.errors import TrainingError
from thrifty.evaluate.windows import digest_file

Message = dict[str, Any]

MOST_NEGATIVES = 16
"""Texts that do not belong to a query, in one row."""
SHOWN_LINES = 5
"""So many lines are named for each reason that rows are set aside for."""


class Method(StrEnum):
    """How rows are learned from."""

    SFT = "sft"
    """Supervised: say what the assistant says."""
    DPO = "dpo"
    """Prefer one answer to another. Rafailov et al. 2023, 2305.18290."""
    KTO = "kto"
    """Say what is liked, and not what is disliked. Ethayarajh et al. 2024, 2402.01306."""
    CONTRASTIVE = "contrastive"
    """For encoders: embed a text near what belongs to it, and far from everything else. Oord et al.
    2018, 1807.03748."""


REASONS = {
    "not_json": "not an object of JSON",
    "fields": "without the fields of the method",
    "role_order": "whose roles are out of order",
    "empty": "with an empty answer",
    "tools": "that call tools which they do not declare",
    "same": "whose two answers, or texts, are the same",
    "refused": "that a server or the chat template refuses",
    "form": "whose calls the chat template writes in another form than it asks for",
    "too_long": "longer than the window",
    "held_out": "that are held out, too",
}
"""Why rows are set aside, completing "rows ..."."""


@dataclass
class SetAside:
    """Rows that are not learned from, by reason, with the lines of the first ones."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def note(self, reason: str, line: int) -> None:
        """Count one row."""
        assert reason in REASONS, reason
        self.counts[reason] += 1
        first = self.lines.setdefault(reason, [])
        if len(first) < SHOWN_LINES:
            first.append(line)

    def as_dict(self) -> dict[str, Any]:
        """The figures, by reason."""
        return {
            reason: {"rows": count, "lines": self.lines[reason]}
            for reason, count in self.counts.most_common()
        }

    def describe(self) -> list[str]:
        """A sentence for each reason."""
        found = []
        for reason, count in self.counts.most_common():
            shown = ", ".join(map(str, self.lines[reason]))
            more = ", ..." if count > len(self.lines[reason]) else ""
            lines = "line" if count == 1 else "lines"
            found.append(
                f"set aside: {count} row{'s' * (count != 1)} {REASONS[reason]} "
                f"({lines} {shown}{more})"
            )
        return found


@dataclass(frozen=True)
class Row:
    """One row, checked."""

    line: int
    messages: list[Message]
    """For `sft` with the answers, else those before the answer."""
    answers: list[Message] = field(default_factory=list)
    """`dpo`: the chosen one and the rejected one; `kto`: the one that is judged; `contrastive`,
    where `messages` is the query: the positive text and the negative ones."""
    label: bool = True
    tools: list[Any] | None = None
    extra: dict[str, Any] | None = None
    learned: frozenset[int] = frozenset()
    """`sft`: the numbers of the messages that are learned."""
    forms: tuple[Row, ...] = ()
    """The row with other wordings of its prompt, which models made."""
    made: str = ""
    """How the row was made from others, if it was."""
    sources: tuple[str, ...] = ()
    """The keys of the rows that it was made from."""
    raw: bytes = field(default=b"", repr=False, compare=False)
    """Its line, as it was read."""

    @property
    def key(self) -> str:
        """The same for rows with the same prompt, which are held out together."""
        end = min(self.learned) if self.learned else len(self.messages)
        said = [[one.get("role"), one.get("content")] for one in self.messages[:end]]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_rows(
    paths: Sequence[Path], method: Method, aside: SetAside, made: Sequence[str] = MADE
) -> Iterator[Row]:
    """The rows of files of JSON lines; bad ones go to `aside`. Lines are counted through all files.
    Of what models made, only that of the methods in `made` is read. Raises `TrainingError` if a
    file cannot be read.
    """
    line = 0
    for path in paths:
        try:
            with path.open("rb") as file:
                for raw in file:
                    line += 1
                    if raw.strip():
                        row = parse_row(raw, line, method, made)
                        if isinstance(row, Row):
                            yield replace(row, raw=raw)
                        elif row:
                            aside.note(row, line)
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from None


def digest_rows(paths: Sequence[Path]) -> str:
    """A checksum of files of rows: that of the file, if there is one."""
    found = [digest_file(path) for path in paths]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def parse_row(raw: bytes, line: int, method: Method, made: Sequence[str] = MADE) -> Row | str:
    """The row in a line of JSON, or why it is set aside (a key of `REASONS`). Nothing (an empty
    text) for a row that was made by a method that is not in `made`.
    """
    try:
        record = json.loads(raw)
        json.dumps(record, ensure_ascii=False).encode()  # fails on half of a surrogate pair
    except (ValueError, RecursionError):
        return "not_json"
    if not isinstance(record, dict):
        return "not_json"
    provenance = record.get("provenance")
    new = provenance.get("made") if isinstance(provenance, dict) else None
    if isinstance(new, dict) and new.get("method") not in made:
        return ""
    others = record.pop("made", None)
    wanted = [
        one for one in (others if isinstance(others, list) else ())
        if isinstance(one, dict) and one.get("method") in made
    ]  # fmt: skip
    _add_negatives(record, wanted)
    row = _parse_record(record, line, method)
    if isinstance(row, str):
        return row
    forms = [_parse_form(record, one, row, method) for one in wanted if one["method"] != NEGATIVES]
    if isinstance(new, dict):
        row = replace(row, made=str(new["method"]), sources=tuple(map(str, new.get("keys", ()))))
    return replace(row, forms=tuple(one for one in forms if one is not None))


def _add_negatives(record: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    own = record.get("negatives", [])
    lists = [one.get("negatives") for one in wanted if one["method"] == NEGATIVES]
    texts = [text for some in lists if isinstance(some, list) for text in some]
    if isinstance(own, list) and texts:
        record["negatives"] = [*own, *(one for one in texts if one not in own)][:MOST_NEGATIVES]


def _parse_form(
    record: dict[str, Any], form: dict[str, Any], row: Row, method: Method
) -> Row | None:
    """The row with another wording; None where that makes no such row."""
    named = {name: value for name, value in form.items() if name in _WORDINGS}
    found = _parse_record({**record, **named}, row.line, method)
    return found if isinstance(found, Row) and found.learned == row.learned else None


_WORDINGS = ("messages", "prompt", "query")


def _parse_record(record: dict[str, Any], line: int, method: Method) -> Row | str:
    if method is Method.CONTRASTIVE:
        return _read_texts(record, line)
    messages = record.get("messages", record.get("prompt") if method is not Method.SFT else None)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    tools, extra = record.get("tools"), record.get("chat_template_kwargs")
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(one, dict) for one in messages)
        or not isinstance(tools, list | None)
        or not isinstance(extra, dict | None)
    ):
        return "fields"
    if method is Method.SFT:
        return _read_conversation(record, messages, line, tools, extra)
    return _read_judged(record, messages, line, method, tools, extra)


def _read_conversation(
    record: dict[str, Any],
    messages: list[Message],
    line: int,
    tools: list[Any] | None,
    extra: dict[str, Any] | None,
) -> Row | str:
    said = [number for number, one in enumerate(messages) if one.get("role") == "assistant"]
    if not said:
        return "fields"
    if not _in_order(messages) or messages[-1].get("role") != "assistant":
        return "role_order"
    if _calls_undeclared(messages, tools):
        return "tools"
    if isinstance(record.get("provenance"), dict) and "feedback" in record["provenance"]:
        said = said[-1:]
    learned = [number for number in said if messages[number].get("weight") != 0]
    if not learned or any(_is_empty(messages[number]) for number in learned):
        return "empty"
    plain = [{key: value for key, value in one.items() if key != "weight"} for one in messages]
    return Row(line, plain, tools=tools, extra=extra, learned=frozenset(learned))


def _read_judged(
    record: dict[str, Any],
    messages: list[Message],
    line: int,
    method: Method,
    tools: list[Any] | None,
    extra: dict[str, Any] | None,
) -> Row | str:
    fields = ("chosen", "rejected") if method is Method.DPO else ("completion",)
    answers = [_read_answer(record.get(name)) for name in fields]
    label = record.get("label", True if method is Method.DPO else None)
    if (
        any(one is None for one in answers)
        or not isinstance(label, bool | int)
        or label not in (0, 1)
    ):
        return "fields"
    given = [one for one in answers if one is not None]
    if any(one.get("role", "assistant") != "assistant" for one in given) or not all(
        _in_order([*messages, one]) for one in given
    ):
        return "role_order"
    if any(map(_is_empty, given)):
        return "empty"
    if _calls_undeclared([*messages, *given], tools):
        return "tools"
    if len(given) == 2 and given[0] == given[1]:
        return "same"
    return Row(line, messages, given, bool(label), tools, extra)


def _read_texts(record: dict[str, Any], line: int) -> Row | str:
    """A row for encoders. `anchor` stands for `query`, and `negative` is one of the negatives."""
    pair = record.get("texts")
    if isinstance(pair, list) and len(pair) == 2:
        record = {"query": pair[0], "positive": pair[1]}
    negatives = record.get("negatives", [])
    if "negative" in record:
        negatives = [record["negative"]]
    if not isinstance(negatives, list) or len(negatives) > MOST_NEGATIVES:
        return "fields"
    texts = [record.get("query", record.get("anchor")), record.get("positive"), *negatives]
    if not all(isinstance(text, str) for text in texts):
        return "fields"
    if not all(text.strip() for text in texts):
        return "empty"
    if len(set(texts)) < len(texts):
        return "same"
    query, *others = ({"role": "user", "content": text} for text in texts)
    return Row(line, [query], others)


def _read_answer(value: Any) -> Message | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        value = {"content": value}
    return {"role": "assistant", **value} if isinstance(value, dict) else None


def _calls_undeclared(messages: list[Message], tools: list[Any] | None) -> bool:
    """Whether tools are called without being declared: a server would have told the model of them,
    so that it never sees such a prompt.
    """
    return not tools and any(one.get("tool_calls") or one.get("function_call") for one in messages)


def _is_empty(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return not message.get("tool_calls") and not str(content or "").strip()


def _in_order(messages: list[Message]) -> bool:
    """Whether systems come first, a user speaks before the assistant, results follow calls, and no
    answer follows an answer.
    """
    before, user, called = "", False, False
    for message in messages:
        role = {"developer": "system", "function": "tool"}.get(
            str(message.get("role")), message.get("role")
        )
        if role == "system":
            if before not in ("", "system"):
                return False
        elif role == "user":
            user, called = True, False
        elif role == "tool":
            if not called:
                return False
        elif role == "assistant":
            if not user or before in ("assistant", "system"):
                return False
            called = bool(message.get("tool_calls") or message.get("function_call"))
        else:
            return False
        before = role
    return True


def choose_held_out(rows: Sequence[tuple[str, bool]], share: float, most: int) -> set[int]:
    """The numbers of the rows that are held out: those of some prompts, with all their rows, until
    `share` of the rows or `most` are held out; at least one prompt, and never all of them. A row is
    its `key` and its `label`.
    """
    by_key: dict[str, list[int]] = {}
    for number, (key, _) in enumerate(rows):
        by_key.setdefault(key, []).append(number)
    wanted = max(1, min(most, round(share * len(rows))))
    chosen: set[int] = set()
    keys = sorted(by_key)
    # One prompt of each kind of answer comes first, so that both are evaluated.
    kinds = (next((key for key in keys if any(rows[n][1] is kind for n in by_key[key])), None)
             for kind in (True, False))  # fmt: skip
    keys = list(dict.fromkeys([*filter(None, kinds), *keys]))
    wanted = max(wanted, 1 + any(not label for _, label in rows))
    for key in keys[: len(keys) - 1]:
        # A prompt with many rows may be more than all that should be held out.
        if chosen and len(chosen) + len(by_key[key]) > wanted:
            continue
        chosen |= set(by_key[key])
        if len(chosen) >= wanted:
            break
    return chosen
