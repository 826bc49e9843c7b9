"""Tools: what is asked for, and what the model is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thrifty.engines.server.tools import (
    CLOSE,
    OPEN,
    ToolPlan,
    add_to_system,
    describe_tools,
    parse_tools,
    render_history,
)
from thrifty.openai.errors import WireError


def tool(name: str = "weather", parameters: Any = None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def custom(form: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "c", "format": form}}


def grammar(syntax: str, definition: str) -> dict[str, Any]:
    return {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER, CLOCK = tool("weather", CITY), tool("clock")
SHELL = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}
SHELL_TOLD = {"type": "function", "function": {"name": "shell", "description": "Runs a command.",
    "parameters": {"type": "object", "properties": {"input": {"type": "string"}},
                   "required": ["input"], "additionalProperties": False}}}  # fmt: skip
AUTO = ToolPlan([WEATHER, CLOCK], "auto")
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'


# what is asked for


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ToolPlan()),
        ({"tools": []}, ToolPlan()),
        ({"tools": None, "tool_choice": "none"}, ToolPlan()),
        ({"tools": [WEATHER]}, ToolPlan([WEATHER], "auto")),
        ({"tools": [WEATHER], "tool_choice": "auto"}, ToolPlan([WEATHER], "auto")),
        ({"tools": [WEATHER], "tool_choice": "none"}, ToolPlan([WEATHER], "none")),
        ({"tools": [WEATHER], "tool_choice": "required"}, ToolPlan([WEATHER], "required")),
        (
            {"tools": [WEATHER], "parallel_tool_calls": False},
            ToolPlan([WEATHER], "auto", parallel=False),
        ),
        (
            {"tools": [WEATHER, CLOCK],
             "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            ToolPlan([CLOCK], "required", parallel=False),
        ),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {
                "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                    {"type": "function", "function": {"name": "clock"}}]}}},
            ToolPlan([WEATHER, CLOCK], "required", allowed=frozenset({"clock"})),
        ),
        (
            {"tools": [WEATHER], "response_format": {"type": "json_object"}},
            ToolPlan([WEATHER], "auto", bare=False),
        ),
        (
            {"tools": [CLOCK, SHELL], "tool_choice": {"type": "custom", "custom": {"name": "shell"}}},
            ToolPlan([SHELL_TOLD], "required", False, custom=frozenset({"shell"})),
        ),
    ],
)  # fmt: skip
def test_plan_is_read(body: dict[str, Any], expected: ToolPlan) -> None:
    plan = parse_tools(body)
    assert plan == expected
    assert plan.active is (bool(expected.tools) and expected.choice != "none")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": [7]}, "tools", r"'tools\[0\]' must be an object of type 'function'"),
        ({"tools": [{"type": "web"}]}, "tools", r"'tools\[0\]' must be an object of type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools", "of type 'function'"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools", "with a 'function'"),
        ({"tools": [WEATHER, tool("")]}, "tools", r"'tools\[1\].function.name' must be 1 to 64"),
        ({"tools": [tool("two words")]}, "tools", "not 'two words'"),
        ({"tools": [tool("x" * 65)]}, "tools", "must be 1 to 64 letters"),
        ({"tools": [tool(7)]}, "tools", "not 7"),
        ({"tools": [tool("f", [1])]}, "tools", "function.parameters' must be a JSON schema"),
        ({"tool_choice": "required"}, "tool_choice", "'tool_choice' needs 'tools'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "'tool_choice' needs 'tools'"),
        (
            {"tools": [WEATHER], "tool_choice": {"function": {"name": "clock"}}},
            "tool_choice",
            "names the function 'clock', which is not among 'tools'",
        ),
        *(
            ({"tools": [WEATHER], "tool_choice": choice}, "tool_choice", "must be named as")
            for choice in (
                {},
                {"function": "weather"},
                {"type": "auto"},
                {"type": "tool", "name": "weather"},
                {"type": ["function"], "function": {"name": "weather"}},
                {"type": "function", "name": "weather"},
                {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "name": "weather"}],
                    },
                },
            )
        ),
        (
            {"tools": [SHELL], "tool_choice": {"type": "function", "function": {"name": "shell"}}},
            "tool_choice",
            "names the function 'shell'",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "weather"}}},
            "tool_choice",
            "names the custom tool 'weather'",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice",
            "must be an object with 'mode'",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "clock"}}],
                    },
                },
            },
            "tool_choice",
            "'clock', which is not among",
        ),
        ({"tools": [custom({"type": "xml"})]}, "tools", "format.type' must be 'text' or 'grammar'"),
        ({"tools": [custom({"type": "grammar"})]}, "tools", "must have a 'syntax'"),
        (
            {"tools": [custom(grammar("lark", "start: X"))]},
            "tools",
            "tool 'c' has a grammar of the syntax 'lark'",
        ),
        (
            {"tools": [custom(grammar("regex", "(?=a)b"))]},
            "tools",
            "tool 'c' cannot be enforced: it looks around",
        ),
    ],
)
def test_faults_are_named(body: Any, param: str, message: str) -> None:
    with pytest.raises(WireError, match=message) as refusal:
        parse_tools(body)
    assert (refusal.value.status, refusal.value.param) == (400, param)


# what the model is told


def test_tools_are_told_one_a_line_in_the_hermes_form() -> None:
    text = describe_tools(AUTO)
    lines = text[text.index("<tools>") : text.index("</tools>")].splitlines()[1:]
    assert [json.loads(line) for line in lines] == [WEATHER, CLOCK]
    assert f'{OPEN}\n{{"name": "function name", "arguments": {{...}}}}\n{CLOSE}' in text


def test_tools_join_the_system_message_or_become_it() -> None:
    user = {"role": "user", "content": "hi"}
    assert add_to_system([user], "T") == [{"role": "system", "content": "T"}, user]
    system = {"role": "system", "content": "S"}
    assert add_to_system([system, user], "T") == [{"role": "system", "content": "S\n\nT"}, user]
    assert system["content"] == "S"
    assert add_to_system([], "T") == [{"role": "system", "content": "T"}]


def test_earlier_calls_and_their_results_become_text() -> None:
    call = {"id": "1", "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Köln"}}}  # fmt: skip
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    tagged = f"{OPEN}\n{CALL}\n{CLOSE}"
    assert render_history(messages) == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": f"{tagged}\n{tagged}"},
        {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"},
        {"role": "assistant", "content": f"One moment.\n{tagged}"},
        {"role": "user", "content": "<tool_response>\n\n</tool_response>"},
    ]


def test_custom_tool_is_held_to_its_pattern() -> None:
    plan = parse_tools({"tools": [custom(grammar("regex", "a|b"))]})
    (told,) = plan.tools
    assert told["function"]["parameters"]["properties"] == {
        "input": {"type": "string", "pattern": "^(?:a|b)$"}
    }
    assert plan.custom == {"c"}


def test_only_allowed_tools_may_be_called_and_all_are_told() -> None:
    plan = ToolPlan([WEATHER, CLOCK], "auto", allowed=frozenset({"clock"}))
    assert plan.usable == [CLOCK]
    assert "weather" in describe_tools(plan)
