"""A chat template, and what it does with messages.

Templates differ in what they take: some have no system role, some want roles to alternate, some
want ids of calls to have nine characters. What one takes is found by rendering small conversations
when it is loaded (`Habits`), not by searching its text.

Templates run in Jinja's sandbox, with the helper functions that transformers provides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thrifty.errors import FormatRefused

Message = dict[str, Any]

ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt"})
"""What a template is given; settings of a request cannot replace it."""
EFFORT = "reasoning_effort"
"""The name under which templates take how much a model should reason; the request's field, too."""


class TemplateRefusal(Exception):
    """The template raised an error, for these messages."""


@dataclass(frozen=True)
class Habits:
    """What a template does with messages. The defaults are those of one that takes least."""

    takes_system: bool = False
    """Writes a system message that comes first."""
    takes_system_anywhere: bool = False
    takes_system_alone: bool = False
    """Takes a conversation without a user's message."""
    takes_assistant_first: bool = False
    takes_repeats: bool = False
    """Takes several messages of one role in a row."""
    writes_tools: bool = False
    takes_objects: bool = False
    """Writes calls whose arguments are objects."""
    takes_text: bool = False
    """Writes calls whose arguments are text, as they are."""
    encodes_values: bool = False
    """Writes arguments of any type as JSON."""
    takes_long_ids: bool = False
    """Takes ids of calls of any length."""

    @property
    def writes_calls(self) -> bool:
        """Whether it writes earlier calls and their results."""
        return self.takes_objects or self.takes_text


class ChatTemplate:
    """One template. `habits` is found when it is made."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are those that templates know by name (`bos_token` etc.). Raises
        `FormatRefused` for a source that is no template.
        """
        try:
            self._template = _compile(source)
        except jinja2.TemplateError as error:
            raise FormatRefused(f"the chat template cannot be compiled: {error}") from None
        self._special_tokens = dict(special_tokens)
        self.takes_effort = EFFORT in source
        """Whether it can be told how much the model should reason."""
        self.habits = _find_habits(self)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation. Raises `TemplateRefusal`."""
        given = {
            **self._special_tokens,
            **(extra or {}),
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(given)
        except Exception as error:
            # A template is a program, which may fail on unexpected messages in any way.
            raise TemplateRefusal(str(error) or repr(error)) from None

    def find_ends(self, tokens: Mapping[str, int]) -> tuple[int, ...]:
        """The tokens among `tokens` (ids by their text) that the template writes right behind an
        answer: they end the model's turn.
        """
        ends = []
        conversation = [_user(1), _assistant(1)]
        for messages in (conversation, [*conversation, _user(2)]):
            try:
                text = self.render(messages, add_generation_prompt=False)
            except TemplateRefusal:
                continue
            behind = text.partition(_mark("assistant", 1))[2].lstrip()
            longest = max((t for t in tokens if t and behind.startswith(t)), key=len, default=None)
            if longest is not None:
                ends.append(tokens[longest])
        return tuple(dict.fromkeys(ends))


_TOOL = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string"}}},
    },
}
_SHORT_ID, _LONG_ID = "zqid12345", "call_zqid1234567890abcdef1234567890"


def _find_habits(template: ChatTemplate) -> Habits:
    def shows(marks: Sequence[str], messages: Sequence[Message], **more: Any) -> bool:
        try:
            text = template.render(messages, **more)
        except TemplateRefusal:
            return False
        return all(mark in text for mark in marks)

    def takes(*messages: Message) -> bool:
        return shows([message["content"] for message in messages], messages)

    system, user = {"role": "system", "content": _mark("system", 1)}, _user(1)
    late = {"role": "system", "content": _mark("system", 2)}
    answer = _assistant(1)
    tools = [_TOOL] if shows(["zqtool"], [user], tools=[_TOOL]) else None

    def writes_call(arguments: Any, mark: str, call_id: str = _SHORT_ID) -> bool:
        function = {"name": "zqcalled", "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        result = {"role": "tool", "content": "zqresult", "tool_call_id": call_id}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        return shows(["zqcalled", "zqresult", mark], [user, called, result], tools=tools)

    value, as_text = {"zqkey": "zqvalue"}, '{"zqkey":   "zqvalue"}'
    takes_objects = writes_call(value, "zqvalue")
    return Habits(
        takes_system=takes(system, user),
        takes_system_anywhere=takes(system, late, user) and takes(user, answer, late, user),
        takes_system_alone=takes(system),
        takes_assistant_first=takes(answer, user),
        takes_repeats=takes(user, _user(2)) and takes(user, answer, _assistant(2), _user(2)),
        writes_tools=tools is not None,
        takes_objects=takes_objects,
        takes_text=writes_call(as_text, as_text),
        encodes_values=writes_call("zqvalue", '"zqvalue"'),
        takes_long_ids=writes_call(value if takes_objects else as_text, "zqvalue", _LONG_ID),
    )


def _mark(role: str, number: int) -> str:
    return f"zq {role} {number}."


def _user(number: int) -> Message:
    return {"role": "user", "content": _mark("user", number)}


def _assistant(number: int) -> Message:
    return {"role": "assistant", "content": _mark("assistant", number)}


def _compile(template: str) -> jinja2.Template:
    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
            sort_keys=sort_keys,
        )  # fmt: skip

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the model's turn for training; it has no effect on a prompt."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
