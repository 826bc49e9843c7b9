"""Tool calls: telling the model of the tools, holding it to their schemas, reading its calls.

A chat template that knows `tools` writes them into the prompt its own way. For other models they
are told in the system message, in the form that Hermes made common. A call that must be made
(`required`, or a named function) is held to the tool's schema by a grammar; a call that may be
made is free text until `<tool_call>`, and held to the schemas from there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from thrifty.engines.server.backend import Grammar
from thrifty.wire.errors import bad_request
from thrifty.wire.ids import new_id

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
    choice = body.get("tool_choice") or ("auto" if tools else "none")
    parallel = body.get("parallel_tool_calls") is not False
    if not tools:
        if choice not in ("none", "auto"):
            raise bad_request("'tool_choice' needs 'tools'.", "tool_choice", "invalid_value")
        return ToolPlan()
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
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
    if plan.choice == "required":
        if len(plan.tools) == 1:
            return Grammar("json_schema", json.dumps(_call_schema(plan.tools[0])))
        schema = {"anyOf": [_call_schema(tool) for tool in plan.tools]}
        return Grammar("json_schema", json.dumps(schema))
    schema = {"anyOf": [_call_schema(tool) for tool in plan.tools]}
    if len(plan.tools) == 1:
        schema = _call_schema(plan.tools[0])
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
    for match in re.finditer(rf"{OPEN}\s*(.*?)\s*(?:{CLOSE}|$)", text, re.DOTALL):
        found = _read_calls(match.group(1), known)
        if found:
            plain.append(text[position : match.start()])
            position = match.end()
            calls += found
    plain.append(text[position:])
    if not calls:
        calls = _read_calls(text.strip(), known)
        if calls:
            plain = []
    if not plan.parallel:
        calls = calls[:1]
    return "".join(plain).strip() if calls else text, calls


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


def _call_schema(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    # References inside a tool's schema point to its own root; its definitions move up with it.
    for key in ("$defs", "definitions"):
        if key in parameters:
            schema[key] = parameters[key]
    return schema


def _read_calls(text: str, known: set[str]) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or item.get("name") not in known:
            return []
        arguments = item.get("arguments", item.get("parameters", {}))
        calls.append(
            {
                "id": f"call_{new_id()}",
                "type": "function",
                "function": {"name": item["name"], "arguments": _as_json(arguments)},
            }
        )
    return calls


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
