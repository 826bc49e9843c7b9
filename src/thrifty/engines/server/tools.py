"""Tools: what a request says of them, and how a model is told.

A chat template that knows `tools` writes them into the prompt its own way. For other models they
are told in the system message, in the form that Hermes made common. A custom tool, which takes free
text, is told as a function with that text as its one argument.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from thrifty.engines.server.grammar.patterns import PatternRefused, check_pattern
from thrifty.openai.errors import WireError, bad_request
from thrifty.openai.fields import show_value

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_INSTRUCTIONS = """You may call functions to help with the user's request. These are available:
<tools>
{tools}
</tools>
To call one, answer with a JSON object inside tags, and nothing else:
<tool_call>
{{"name": "function name", "arguments": {{...}}}}
</tool_call>"""


@dataclass(frozen=True)
class ToolPlan:
    """What a request's tools come to."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    """Those that the model is told of, all in the form of functions."""
    choice: str = "none"
    """`none`, `auto`, or `required` (also for a named tool; `tools` then holds it alone)."""
    parallel: bool = True
    allowed: frozenset[str] | None = None
    """The names of those that may be called, if not all."""
    custom: frozenset[str] = frozenset()
    """The names of those that take free text."""
    bare: bool = True
    """Whether an answer that is a call as a whole, without tags, is taken for one."""

    @property
    def active(self) -> bool:
        """Whether the answer may hold calls."""
        return bool(self.tools) and self.choice != "none"

    @property
    def usable(self) -> list[dict[str, Any]]:
        """Those that may be called."""
        return [
            t for t in self.tools if self.allowed is None or t["function"]["name"] in self.allowed
        ]


def parse_tools(body: dict[str, Any]) -> ToolPlan:
    """The plan in a request. Raises a 400 that names the fault."""
    given = body.get("tools") or []
    tools = [_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]
    custom = frozenset(
        tool["function"]["name"]
        for tool, original in zip(tools, given, strict=True)
        if original["type"] == "custom"
    )
    choice = body.get("tool_choice")
    if choice is None:
        choice = "auto" if tools else "none"
    if not tools:
        if choice not in ("none", "auto"):
            raise bad_request("'tool_choice' needs 'tools'.", "tool_choice", "invalid_value")
        return ToolPlan()
    parallel = body.get("parallel_tool_calls") is not False
    bare = (body.get("response_format") or {}).get("type") in (None, "text")
    if not isinstance(choice, dict):
        return ToolPlan(tools, choice, parallel, None, custom, bare)
    if choice.get("type") == "allowed_tools":
        mode, allowed = _check_allowed(choice, tools, custom)
        return ToolPlan(tools, mode, parallel, allowed, custom, bare)
    name = _read_name(choice, tools, custom)
    tools = [tool for tool in tools if tool["function"]["name"] == name]
    return ToolPlan(tools, "required", False, None, custom & {name}, bare)


def _read_name(choice: dict[str, Any], tools: list[dict[str, Any]], custom: frozenset[str]) -> str:
    """The name of the tool in an object that names one. Raises a 400 if there is no such tool."""
    kind = choice.get("type", "function")
    holder = choice.get(kind) if kind in ("function", "custom") else None
    name = holder.get("name") if isinstance(holder, dict) else None
    if not isinstance(name, str):
        raise bad_request(
            "A tool in 'tool_choice' must be named as {'type': 'function', 'function': {'name': ...}}, "
            f"or as the same with 'custom', not {show_value(choice)}.",
            "tool_choice",
            "invalid_value",
        )
    known = [tool["function"]["name"] for tool in tools]
    if name not in known or (name in custom) != (kind == "custom"):
        what = "function" if kind == "function" else "custom tool"
        raise bad_request(
            f"'tool_choice' names the {what} {show_value(name)}, which is not among 'tools'.",
            "tool_choice",
            "invalid_value",
        )
    return name


def _check_allowed(
    choice: dict[str, Any], tools: list[dict[str, Any]], custom: frozenset[str]
) -> tuple[str, frozenset[str]]:
    """The mode and the names in a `tool_choice` of the type `allowed_tools`."""
    holder = choice.get("allowed_tools")
    holder = holder if isinstance(holder, dict) else {}
    mode, given = holder.get("mode"), holder.get("tools")
    if mode not in ("auto", "required") or not isinstance(given, list) or not given:
        raise bad_request(
            "'tool_choice.allowed_tools' must be an object with 'mode' ('auto' or 'required') and "
            "'tools', a non-empty array.",
            "tool_choice",
            "invalid_value",
        )
    named = [tool if isinstance(tool, dict) else {} for tool in given]
    return mode, frozenset(_read_name(tool, tools, custom) for tool in named)


def describe_tools(plan: ToolPlan) -> str:
    """The system text that tells a model of its tools, for templates that do not."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in plan.tools)
    return _INSTRUCTIONS.format(tools=lines)


def add_to_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """`messages` with `text` at the end of the system message, which is made if there is none."""
    if messages and messages[0].get("role") == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def render_history(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier calls and their results as text, for templates that do not know tools."""
    rendered = []
    for message in messages:
        if message.get("tool_calls"):
            parts = [message.get("content") or ""]
            for call in message["tool_calls"]:
                function = call["function"]
                parts.append(
                    f'{OPEN}\n{{"name": {json.dumps(function["name"])}, '
                    f'"arguments": {_as_json(function["arguments"])}}}\n{CLOSE}'
                )
            rendered.append({"role": "assistant", "content": "\n".join(p for p in parts if p)})
        elif message.get("role") == "tool":
            text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
            rendered.append({"role": "user", "content": text})
        else:
            rendered.append(message)
    return rendered


def _check_tool(tool: Any, where: str) -> dict[str, Any]:
    """A tool in the form of a function. Raises a 400 that names the fault."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    holder = tool.get(kind) if kind in ("function", "custom") else None
    if not isinstance(holder, dict):
        raise _invalid(
            f"'{where}' must be an object of type 'function' with a 'function', or of type 'custom' "
            "with a 'custom'."
        )
    name = holder.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _invalid(
            f"'{where}.{kind}.name' must be 1 to 64 letters, digits, '_', '.' or '-', not "
            f"{show_value(name)}."
        )
    if kind == "custom":
        return _as_function(holder, where)
    if not isinstance(holder.get("parameters") or {}, dict):
        raise _invalid(f"'{where}.function.parameters' must be a JSON schema.")
    checked: dict[str, Any] = tool
    return checked


def _as_function(custom: dict[str, Any], where: str) -> dict[str, Any]:
    """A custom tool as a function that takes its text as `input`."""
    text: dict[str, Any] = {"type": "string"}
    form = custom.get("format") or {"type": "text"}
    if not isinstance(form, dict) or form.get("type") not in ("text", "grammar"):
        raise _invalid(f"'{where}.custom.format.type' must be 'text' or 'grammar'.")
    if form["type"] == "grammar":
        grammar = form.get("grammar")
        grammar = grammar if isinstance(grammar, dict) else {}
        syntax, definition = grammar.get("syntax"), grammar.get("definition")
        if syntax not in ("regex", "lark") or not isinstance(definition, str):
            raise _invalid(
                f"'{where}.custom.format.grammar' must have a 'syntax' ('regex' or 'lark') and a "
                "'definition'."
            )
        if syntax == "lark":
            raise _refuse(f"The tool '{custom['name']}' has a grammar of the syntax 'lark', which cannot "
                          "be enforced here; give it as a 'regex'.")  # fmt: skip
        try:
            check_pattern(definition)
        except PatternRefused as error:
            raise _refuse(
                f"The grammar of the tool '{custom['name']}' cannot be enforced: {error}."
            ) from None
        text["pattern"] = f"^(?:{definition})$"
    function = {"name": custom["name"]}
    if custom.get("description"):
        function["description"] = custom["description"]
    function["parameters"] = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": function}


def _invalid(message: str) -> WireError:
    return bad_request(message, "tools", "invalid_value")


def _refuse(message: str) -> WireError:
    return bad_request(message, "tools", "invalid_schema")


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
