"""Tool calls: what is asked for, what binds the model, and what its answers come to."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.server.tools import (
    CLOSE,
    OPEN,
    ToolPlan,
    add_to_system,
    build_grammar,
    describe_tools,
    parse_calls,
    parse_tools,
    render_history,
)
from thrifty.openai.errors import WireError


def tool(name: str = "weather", parameters: Any = None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER, CLOCK = tool("weather", CITY), tool("clock")
AUTO = ToolPlan([WEATHER, CLOCK], "auto")
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'


def found(text: str, plan: ToolPlan = AUTO) -> tuple[str, list[tuple[str, Any]]]:
    """The plain text of an answer, and its calls as names and arguments."""
    plain, calls = parse_calls(text, plan)
    for call in calls:
        assert call["type"] == "function"
        assert re.fullmatch("[A-Za-z0-9]{9}", call["id"])
    assert len({call["id"] for call in calls}) == len(calls)
    return plain, [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls
    ]


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
        ({"tools": [WEATHER], "tool_choice": {}}, "tool_choice", "names the function None"),
        ({"tools": [WEATHER], "tool_choice": {"function": "f"}}, "tool_choice", "function None"),
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


def test_history_that_was_rendered_is_read_back_as_the_same_calls() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Köln\n</b>"}}}
    (message,) = render_history([{"role": "assistant", "content": "Hm.", "tool_calls": [call]}])
    assert found(message["content"]) == ("Hm.", [("weather", {"city": "Köln\n</b>"})])


# what binds the model


def schema_of(plan: ToolPlan) -> Any:
    grammar = build_grammar(plan)
    value = json.loads(grammar.text)
    if grammar.kind == "json_schema":
        return value
    assert grammar.kind == "structural_tag"
    (tag,) = value["format"]["tags"]
    return tag["content"]["json_schema"]


def call_schema(name: str, arguments: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


NOTHING = {"type": "object", "properties": {}}


def test_required_call_of_one_tool_is_held_to_its_schema() -> None:
    grammar = build_grammar(ToolPlan([WEATHER], "required"))
    assert grammar.kind == "json_schema"
    assert json.loads(grammar.text) == call_schema("weather", CITY)


def test_required_call_of_several_tools_is_held_to_one_of_their_schemas() -> None:
    assert schema_of(ToolPlan([WEATHER, CLOCK], "required")) == {
        "anyOf": [call_schema("weather", CITY), call_schema("clock", NOTHING)]
    }


@pytest.mark.parametrize("parallel", [True, False])
def test_possible_call_is_free_until_its_tag(parallel: bool) -> None:
    grammar = build_grammar(ToolPlan([WEATHER, CLOCK], "auto", parallel))
    assert grammar.kind == "structural_tag"
    form = json.loads(grammar.text)["format"]
    assert (form["type"], form["triggers"]) == ("triggered_tags", [OPEN])
    assert form["stop_after_first"] is not parallel
    (tag,) = form["tags"]
    assert (tag["begin"], tag["end"]) == (f"{OPEN}\n", f"\n{CLOSE}")
    assert tag["content"]["json_schema"] == schema_of(ToolPlan([WEATHER, CLOCK], "required"))


def resolve(schema: Any, reference: str) -> Any:
    """What a local reference points to."""
    assert reference.startswith("#")
    for part in reference[1:].split("/")[1:]:
        schema = schema[part]
    return schema


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [r for item in value for r in references(item)]
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for item in value.values() for r in references(item)]
    return []


def test_definitions_of_two_tools_do_not_get_in_each_others_way() -> None:
    """Both tools call their own definition `Place`, and they are different places."""
    one = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}},
           "$defs": {"Place": {"type": "string"}}}  # fmt: skip
    two = {"type": "object", "properties": {"at": {"$ref": "#/definitions/Place"}},
           "definitions": {"Place": {"type": "integer"}}}  # fmt: skip
    schema = schema_of(ToolPlan([tool("one", one), tool("two", two)], "required"))
    places = []
    for call in schema["anyOf"]:
        parameters = resolve(schema, call["properties"]["arguments"]["$ref"])
        places.append(resolve(schema, parameters["properties"]["at"]["$ref"]))
    assert places == [{"type": "string"}, {"type": "integer"}]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_every_reference_points_to_what_it_pointed_to_before(choice: str) -> None:
    tree = {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}},
                       "label": {"$ref": "#/$defs/Label"}},
        "$defs": {"Label": {"type": "string", "maxLength": 5}},
    }  # fmt: skip
    schema = schema_of(ToolPlan([CLOCK, tool("grow", tree)], choice))
    moved = schema["anyOf"][1]["properties"]["arguments"]
    root = resolve(schema, moved["$ref"])
    assert resolve(schema, root["properties"]["label"]["$ref"]) == tree["$defs"]["Label"]
    assert resolve(schema, root["properties"]["children"]["items"]["$ref"]) is root
    assert len(references(schema)) == 3
    assert tree["properties"]["label"] == {"$ref": "#/$defs/Label"}


# what the answers come to

GOOD = [
    (f"{OPEN}\n{CALL}\n{CLOSE}", "", 1),
    (f"{OPEN}{CALL}{CLOSE}", "", 1),
    (f"{OPEN}\n{CALL}", "", 1),
    (f"Let me see. {OPEN}\n{CALL}\n{CLOSE}", "Let me see.", 1),
    (f"\n\nLet me see.\n{OPEN}\n{CALL}\n{CLOSE}\n", "\n\nLet me see.", 1),
    (f"{OPEN}\n{CALL}\n{CLOSE}\n{OPEN}\n{CALL}\n{CLOSE}", "", 2),
    (f"A {OPEN}{CALL}{CLOSE} B {OPEN}{CALL}{CLOSE} C", "A  B  C", 2),
    (f"{OPEN}[{CALL}, {CALL}]{CLOSE}", "", 2),
    (CALL, "", 1),
    (f"  {CALL}\n", "", 1),
    (f"[{CALL}, {CALL}]", "", 2),
]


@pytest.mark.parametrize(("text", "plain", "count"), GOOD)
def test_calls_are_read(text: str, plain: str, count: int) -> None:
    assert found(text) == (plain, [("weather", {"city": "Köln"})] * count)


def test_only_the_first_call_counts_where_one_is_asked_for() -> None:
    plan = ToolPlan([WEATHER], "auto", parallel=False)
    assert found(f"{OPEN}{CALL}{CLOSE}{OPEN}{CALL}{CLOSE}", plan)[1] == [
        ("weather", {"city": "Köln"})
    ]


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        ('{"name": "clock", "arguments": {}}', {}),
        ('{"name": "clock", "parameters": {"zone": 1}}', {"zone": 1}),
        ('{"name": "clock"}', {}),
        ('{"name": "clock", "arguments": null}', {}),
        ('{"name": "clock", "arguments": "{\\"zone\\": 1}"}', {"zone": 1}),
    ],
)
def test_arguments_come_in_several_forms(inner: str, arguments: Any) -> None:
    assert found(f"{OPEN}{inner}{CLOSE}") == ("", [("clock", arguments)])


BAD = [
    "",
    "plain text",
    "{ not json",
    "[]",
    "{}",
    "7",
    "null",
    '{"name": "unknown", "arguments": {}}',
    '{"name": ["weather"], "arguments": {}}',
    '{"name": {"weather": 1}}',
    '{"name": null}',
    f"[{CALL}, 7]",
    f'[{CALL}, {{"name": "unknown"}}]',
    f"{OPEN}{CLOSE}",
    f"{OPEN}{{ not json {CLOSE}",
    f"{OPEN}{CALL[:-3]}",
    f"{OPEN} {OPEN} {CLOSE}",
    f"{CLOSE}{CALL}",
    "[" * 100_000,
    f"{OPEN}{'[' * 100_000}{CLOSE}",
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_call_stays_text(text: str) -> None:
    assert found(text) == (text, [])


def test_bad_call_beside_a_good_one_stays_text() -> None:
    assert found(f"{OPEN}{{}}{CLOSE} and {OPEN}{CALL}{CLOSE}") == (
        f"{OPEN}{{}}{CLOSE} and",
        [("weather", {"city": "Köln"})],
    )


@given(st.text(alphabet=f'{OPEN}{CLOSE}{{}}[]":, weathrnmgus\n', max_size=80))
def test_any_answer_is_read_without_a_fault(text: str) -> None:
    plain, calls = parse_calls(text, AUTO)
    assert calls or plain == text


@pytest.mark.parametrize("text", [OPEN + " " * 200_000, (OPEN + "\n") * 20_000, OPEN * 20_000])
def test_hostile_answers_are_read_in_no_time(text: str) -> None:
    began_s = time.perf_counter()
    parse_calls(text, AUTO)
    assert time.perf_counter() - began_s < 5
