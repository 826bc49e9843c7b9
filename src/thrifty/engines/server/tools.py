"""Tool calls: telling the model of the tools, holding it to their schemas, reading its calls.

A chat template that knows `tools` writes them into the prompt its own way. For other models they
are told in the system message, in the form that Hermes made common. A call that must be made
(`required`, or a named function) is held to the tool's schema by a grammar; a call that may be
made is free text until `<tool_call>`, and held to the schemas from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from thrifty.engines.server.backend import Grammar
from thrifty.openai.errors import bad_request
from thrifty.openai.ids import new_call_id

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
    choice: str = "none"
    """`none`, `auto`, or `required` (also for a named function; `tools` then holds it alone)."""
    parallel: bool = True

    @property
    def active(self) -> bool:
        """Whether the answer may hold calls."""
        return bool(self.tools) and self.choice != "none"


def parse_tools(body: dict[str, Any]) -> ToolPlan:
    """The plan in a request. Raises a 400 that names the fault."""
    tools = body.get("tools") or []
    for index, tool in enumerate(tools):
        _check_tool(tool, f"tools[{index}]")
    choice = body.get("tool_choice")
    if choice is None:
        choice = "auto" if tools else "none"
    parallel = body.get("parallel_tool_calls") is not False
    if not tools:
        if choice not in ("none", "auto"):
            raise bad_request("'tool_choice' needs 'tools'.", "tool_choice", "invalid_value")
        return ToolPlan()
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise bad_request(
                f"'tool_choice' names the function {name!r}, which is not among 'tools'.",
                "tool_choice",
                "invalid_value",
            )
        return ToolPlan(tools, "required", parallel=False)
    return ToolPlan(tools, choice, parallel)


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


def build_grammar(plan: ToolPlan) -> Grammar:
    """The constraint that makes every call valid."""
    schema = _calls_schema(plan.tools)
    if plan.choice == "required":
        return Grammar("json_schema", json.dumps(schema))
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": [OPEN],
            "tags": [
                {
                    "begin": f"{OPEN}\n",
                    "content": {"type": "json_schema", "json_schema": schema},
                    "end": f"\n{CLOSE}",
                }
            ],
            "stop_after_first": not plan.parallel,
        },
    }
    return Grammar("structural_tag", json.dumps(tag))


def parse_calls(text: str, plan: ToolPlan) -> tuple[str, list[dict[str, Any]]]:
    """The plain text and the calls in a whole answer.

    Text that looks like a call but is not one stays text. Understood are Hermes tags and an
    answer that is one JSON object (or an array of them) with a name and arguments.
    """
    known = {tool["function"]["name"] for tool in plan.tools}
    calls: list[dict[str, Any]] = []
    plain: list[str] = []
    position = 0
    for begin, end, inner in _find_tags(text):
        found = _read_calls(inner, known)
        if found:
            plain.append(text[position:begin])
            position = end
            calls += found
    plain.append(text[position:])
    if not calls:
        calls = _read_calls(text, known)
        if calls:
            plain = []
    if not plan.parallel:
        calls = calls[:1]
    return "".join(plain).rstrip() if calls else text, calls


def _find_tags(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each tagged part begins and ends, and what is between the tags. The last may be open."""
    begin = text.find(OPEN)
    while begin >= 0:
        inner = begin + len(OPEN)
        close = text.find(CLOSE, inner)
        stop, end = (close, close + len(CLOSE)) if close >= 0 else (len(text), len(text))
        yield begin, end, text[inner:stop]
        begin = text.find(OPEN, end)


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


def _check_tool(tool: Any, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise bad_request(
            f"'{where}' must be an object of type 'function' with a 'function'.",
            "tools",
            "invalid_value",
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(
            f"'{where}.function.name' must be 1 to 64 letters, digits, '_', '.' or '-', not "
            f"{name!r}.",
            "tools",
            "invalid_value",
        )
    if not isinstance(function.get("parameters") or {}, dict):
        raise bad_request(
            f"'{where}.function.parameters' must be a JSON schema.", "tools", "invalid_value"
        )


def _calls_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of one call of any of `tools`.

    A tool's references point into its own schema. One that has any is moved below the root, where
    no other tool's definitions are in its way, and its references with it.
    """
    calls = []
    definitions: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        moved = _move_references(parameters, f"#/$defs/tool{index}")
        if moved != parameters:
            definitions[f"tool{index}"] = moved
            moved = {"$ref": f"#/$defs/tool{index}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": moved},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _move_references(value: Any, root: str) -> Any:
    """`value` with its references to `#` and below turned into references to `root` and below."""
    if isinstance(value, list):
        return [_move_references(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _move_references(item, root) for key, item in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _read_calls(text: str, known: set[str]) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in known:
            return []
        arguments = item.get("arguments", item.get("parameters"))
        calls.append(
            {
                "id": new_call_id(),
                "type": "function",
                "function": {"name": name, "arguments": _as_json(arguments or {})},
            }
        )
    return calls


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
