"""Calls in an answer, read as it grows: what is text, which tool is called, and with what.

A call that begins as the grammar has it (`binding`) is told at once, and its arguments as they come;
if the answer is cut off there, so are they. Models that are not bound write calls in other forms.
Those are held back until they are whole, and are text if they turn out to be none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thrifty.engines.server.tools import CLOSE, OPEN, ToolPlan
from thrifty.openai.ids import new_call_id
from thrifty.untrusted_text import replace_halves

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.-]{1,64})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_MAX_HEAD = 400
_INPUT = re.compile(r'\{\s*"input"\s*:\s*"')


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call begins. `custom` tools take free text, others the text of a JSON object."""

    index: int
    id: str
    name: str
    custom: bool


@dataclass(frozen=True, slots=True)
class CallInput:
    """More of what a call's tool is given."""

    index: int
    text: str


Event = TextPart | CallBegin | CallInput


class CallReader:
    """Reads one answer. Feed it text, then end it."""

    def __init__(self, plan: ToolPlan) -> None:
        self._plan = plan
        self._known = {tool["function"]["name"] for tool in plan.usable}
        self._mode = (
            self._head if plan.choice == "required" else self._begin if plan.bare else self._text
        )
        self._held = ""
        self._searched = 0
        self._space = ""
        self._tagged = False
        self._object = _ObjectEnd()
        self._input: _InputText | None = None
        self._index: int | None = None
        self.count = 0
        """How many calls there are."""
        self.whole = True
        """Whether the last of them has all its arguments."""

    def feed(self, text: str) -> list[Event]:
        """What is certain now."""
        self._held += text
        events: list[Event] = []
        mode = None
        while mode != self._mode:
            mode = self._mode
            events += mode()
        return events

    def end(self) -> list[Event]:
        """What is left."""
        held, self._held = self._held, ""
        events: list[Event] = []
        if self._mode in (self._head, self._wait):
            inner = held
            calls = _read_calls(inner, self._known)
            events += (
                self._tell_calls(calls)
                if calls
                else self._tell_text((OPEN if self._tagged else "") + held)
            )
        elif self._mode in (self._begin, self._text):
            events += self._tell_text(held)
        if self._space and not self.count:
            events.append(TextPart(self._space))
        return events

    # Each mode takes what it can from `_held`, and may set another one, which then goes on.

    def _begin(self) -> Iterator[Event]:
        """Nothing but space has come: an answer that is one JSON value may be a call."""
        stripped = self._held.lstrip()
        if stripped:
            self._mode = self._wait if stripped[0] in "{[" else self._text
        return iter(())

    def _wait(self) -> Iterator[Event]:
        """Whether it is a call will be known at the end, or where its tag ends."""
        if not self._tagged:
            return
        end = self._held.find(CLOSE, max(0, self._searched - len(CLOSE)))
        self._searched = len(self._held)
        if end >= 0:
            inner, self._held = self._held[:end], self._held[end + len(CLOSE) :]
            self._mode = self._text
            calls = _read_calls(inner, self._known)
            yield from (
                self._tell_calls(calls) if calls else self._tell_text(f"{OPEN}{inner}{CLOSE}")
            )

    def _text(self) -> Iterator[Event]:
        begin = self._held.find(OPEN)
        if begin >= 0:
            text, self._held = self._held[:begin], self._held[begin + len(OPEN) :]
            self._mode, self._tagged, self._searched = self._head, True, 0
        else:
            end = len(self._held) - _count_begun(self._held)
            text, self._held = self._held[:end], self._held[end:]
        yield from self._tell_text(text)

    def _head(self) -> Iterator[Event]:
        head = _HEAD.match(self._held, 0, _MAX_HEAD)
        if head is None or head[1] not in self._known:
            # A whole call in another form ends with its tag.
            if len(self._held) > _MAX_HEAD or CLOSE in self._held:
                self._mode = self._wait
            return
        self._held = self._held[head.end() :]
        self._mode, self._object = self._arguments, _ObjectEnd()
        yield from self._tell_begin(head[1])

    def _arguments(self) -> Iterator[Event]:
        end = self._object.find(self._held)
        text, self._held = self._held[:end], self._held[end:]
        if self._object.found:
            self.whole = True
            self._mode = self._rest
        yield from self._tell_input(text)

    def _rest(self) -> Iterator[Event]:
        """Behind the arguments: the end of the call, which says nothing more."""
        end = self._held.find(CLOSE) if self._tagged else -1
        if end >= 0:
            self._held = self._held[end + len(CLOSE) :]
            self._mode = self._text
        return iter(())

    # What is told

    def _tell_text(self, text: str) -> Iterator[Event]:
        """Text; the space at its end only with what follows, because none is told before a call."""
        kept = text.rstrip()
        if kept:
            yield TextPart(self._space + kept)
            self._space = ""
        self._space += text[len(kept) :]

    def _tell_calls(self, calls: list[tuple[str, str]]) -> Iterator[Event]:
        for name, arguments in calls:
            yield from self._tell_begin(name)
            yield from self._tell_input(arguments)
            self.whole = True

    def _tell_begin(self, name: str) -> Iterator[Event]:
        self._index = None
        if self.count and not self._plan.parallel:
            return
        self._index = self.count
        self.count += 1
        self.whole = False
        custom = name in self._plan.custom
        self._input = _InputText() if custom else None
        yield CallBegin(self._index, new_call_id(), name, custom)

    def _tell_input(self, text: str) -> Iterator[Event]:
        if self._index is None:
            return
        if self._input is not None:
            text = self._input.feed(text)
        if text:
            yield CallInput(self._index, text)


class _ObjectEnd:
    """Looks for the end of a JSON object as it comes."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.found = False

    def find(self, text: str) -> int:
        """How much of `text` belongs to the object."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.found = True
                    return place + 1
        return len(text)


class _InputText:
    """Decodes the free text in `{"input": "..."}` as it comes."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False
        self._ended = False

    def feed(self, text: str) -> str:
        """What is certain now. A character whose escape is not whole waits for the rest."""
        self._held += text
        if not self._begun:
            begin = _INPUT.match(self._held)
            if begin is None:
                return ""
            self._begun = True
            self._held = self._held[begin.end() :]
        if self._ended:
            return ""
        whole = _PIECES.match(self._held)
        end = 0 if whole is None else whole.end()
        taken, rest = self._held[:end], self._held[end:]
        self._ended = rest.startswith('"')
        self._held = rest
        return replace_halves(json.loads(f'"{taken}"', strict=False))


_PIECES = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}"
    r"(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F])))*"
)
"""Characters of a string, each whole. Half of a surrogate pair is one if no other half follows."""


def _count_begun(text: str) -> int:
    """How many characters at the end of `text` could be the beginning of a tag."""
    for length in range(min(len(text), len(OPEN) - 1), 0, -1):
        if OPEN.startswith(text[-length:]):
            return length
    return 0


def _read_calls(text: str, known: set[str]) -> list[tuple[str, str]]:
    """The names and arguments in a JSON object or an array of them; none if it is anything else."""
    calls = []
    try:
        value = json.loads(text)
        for item in value if isinstance(value, list) else [value]:
            name = item.get("name") if isinstance(item, dict) else None
            if not isinstance(name, str) or name not in known:
                return []
            calls.append((name, _write_arguments(item)))
    except (ValueError, RecursionError):
        return []
    return calls


def _write_arguments(call: dict[str, Any]) -> str:
    """The arguments of a call as text that UTF-8 can hold. Raises `ValueError` for numbers that
    JSON does not have.
    """
    value = call.get("arguments", call.get("parameters")) or {}
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return replace_halves(value)


def read_answer(text: str, plan: ToolPlan) -> tuple[str, list[dict[str, Any]], bool]:
    """The plain text and the calls of a whole answer, and whether the last call is whole."""
    reader = CallReader(plan)
    plain = ""
    calls: list[dict[str, Any]] = []
    for event in [*reader.feed(text), *reader.end()]:
        if isinstance(event, TextPart):
            plain += event.text
        elif isinstance(event, CallBegin):
            calls.append(describe_call(event, ""))
        else:
            call = calls[event.index]
            holder, key = (
                (call["custom"], "input") if "custom" in call else (call["function"], "arguments")
            )
            holder[key] += event.text
    return plain, calls, reader.whole


def describe_call(begin: CallBegin, text: str) -> dict[str, Any]:
    """A call as the dialect has it, with its input so far."""
    if begin.custom:
        return {"id": begin.id, "type": "custom", "custom": {"name": begin.name, "input": text}}
    return {
        "id": begin.id,
        "type": "function",
        "function": {"name": begin.name, "arguments": text},
    }
