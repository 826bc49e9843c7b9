"""What binds an answer: the grammar of a request's `response_format` and its tools.

A call is written `{"name": "NAME", "arguments": {...}}`. Where one must be made, it is the whole
answer. Where one may be made, it stands in `<tool_call>` tags, in free text or, beside a
`response_format`, in its place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from functools import lru_cache
from typing import Any

from thrifty.engines.server.backend import Grammar
from thrifty.engines.server.grammar.rules import Alternative, FreeText, GrammarTooLarge, Ref, Rules
from thrifty.engines.server.grammar.schema import SchemaRefused
from thrifty.engines.server.grammar.values import write_schema
from thrifty.engines.server.tools import CLOSE, OPEN, ToolPlan
from thrifty.openai.errors import WireError, bad_request
from thrifty.openai.fields import show_value

log = logging.getLogger(__name__)

MAX_SCHEMA_BYTES = 256 * 1024
_OBJECT = {"type": "object"}
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})


def parse_response_format(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema that an answer must satisfy; None where it is free. Raises a 400.

    A schema stands in `json_schema`, as with OpenAI, or beside the type, as with other servers.
    """
    if value is None:
        return None
    kind, holder = value.get("type"), value.get("json_schema")
    if kind not in ("text", "json_object", "json_schema"):
        raise _invalid(
            "'response_format.type' must be 'text', 'json_object' or 'json_schema', not "
            f"{show_value(kind)}."
        )
    if holder is None:
        holder = {}
    if not isinstance(holder, dict):
        raise _invalid("'response_format.json_schema' must be an object with a 'schema'.")
    _check_keys(value, "response_format", {"type", "json_schema", *_SCHEMA_KEYS})
    _check_keys(holder, "response_format.json_schema", _SCHEMA_KEYS)
    schemas = [s for s in (holder.get("schema"), value.get("schema")) if s is not None]
    if len(schemas) > 1 or (schemas and kind == "text"):
        raise _invalid(
            "'response_format' holds two schemas; give one, in 'json_schema.schema'."
            if len(schemas) > 1
            else "'response_format' of the type 'text' has no schema; use the type 'json_schema'."
        )
    if not schemas and kind != "json_schema":
        return None if kind == "text" else _OBJECT
    if not schemas or not isinstance(schemas[0], dict):
        where = "schema" if value.get("schema") is not None else "json_schema.schema"
        raise _invalid(f"'response_format.{where}' must be a JSON schema, as an object.")
    schema: dict[str, Any] = schemas[0]
    return schema


def _check_keys(found: dict[str, Any], where: str, known: Set[str]) -> None:
    """Refuse keys that would be ignored."""
    for key, item in found.items():
        if key not in known and item is not None:
            raise _invalid(
                f"'{where}' has an unknown key {show_value(key)}; it may hold "
                f"{', '.join(sorted(known))}."
            )


def _invalid(message: str) -> WireError:
    return bad_request(message, "response_format", "invalid_value")


def bind_answer(
    schema: dict[str, Any] | None, plan: ToolPlan, vocabulary_size: int
) -> Grammar | None:
    """The grammar of an answer by `schema`, with the calls of `plan`; None where it is free. Raises a
    400 that says what cannot be enforced. Takes up to some seconds for a large schema.
    """
    if not plan.active:
        return (
            None
            if schema is None
            else _bind(json.dumps(schema), "[]", "none", False, vocabulary_size)
        )
    tools = [tool["function"] for tool in plan.usable]
    answer = None if schema is None or plan.choice == "required" else json.dumps(schema)
    return _bind(answer, json.dumps(tools), plan.choice, plan.parallel, vocabulary_size)


def check_ends(body: dict[str, Any], schema: dict[str, Any] | None, plan: ToolPlan) -> None:
    """Refuse what would have an answer go on behind the end that its grammar sets."""
    if not plan.active and schema is None:
        return
    if plan.choice == "auto" and schema is None and plan.parallel:
        return
    for name in ("min_tokens", "ignore_eos"):
        if body.get(name):
            raise bad_request(
                f"'{name}' cannot be joined with an answer that a schema binds: it ends where its value "
                "does.",
                name,
                "invalid_value",
            )


@lru_cache(maxsize=64)
def _bind(
    schema: str | None, tools: str, choice: str, parallel: bool, vocabulary_size: int
) -> Grammar:
    rules = Rules()
    try:
        calls = _write_calls(rules, json.loads(tools)) if choice != "none" else None
    except GrammarTooLarge as error:
        raise _refuse(f"The tools cannot be enforced together: {error}.", "tools") from None
    value = None if schema is None else _write_answer(rules, schema)
    root = _join(rules, value, calls, choice, parallel)
    try:
        grammar = rules.write(root, vocabulary_size)
    except GrammarTooLarge as error:
        param = "response_format" if calls is None else "tools"
        raise _refuse(f"'{param}' cannot be enforced: {error}.", param) from None
    assert grammar is not None
    return grammar


def _join(rules: Rules, value: Ref | None, calls: Ref | None, choice: str, parallel: bool) -> Ref:
    if calls is None:
        assert value is not None
        return value
    if choice == "required":
        return calls
    tagged: Alternative = ("\n", calls, f"\n{CLOSE}")
    if value is None:
        return rules.add((FreeText(OPEN, rules.add(tagged), parallel),))
    others = rules.repeat(rules.add((f"\n{OPEN}", *tagged)), 0, None if parallel else 0)
    return rules.add((value,), (OPEN, *tagged, *others))


def _write_answer(rules: Rules, schema: str) -> Ref:
    what = "The schema in 'response_format'"
    _check_size(schema, "response_format", what)
    ref = _write_schema(rules, json.loads(schema), param="response_format", what=what)
    if not rules.can_end(ref):
        raise _refuse("No value satisfies the schema in 'response_format'.", "response_format")
    return ref


def _write_calls(rules: Rules, tools: list[dict[str, Any]]) -> Ref:
    """One call of any of `tools`."""
    calls: list[Alternative] = []
    for tool in tools:
        name = tool["name"]
        parameters = tool.get("parameters") or {"type": "object", "properties": {}}
        what = f"The schema of the tool '{name}'"
        _check_size(json.dumps(parameters), "tools", what)
        ref = _write_schema(rules, parameters, _OBJECT, param="tools", what=what)
        if not rules.can_end(ref):
            raise _refuse(f"No object satisfies the parameters of the tool '{name}'.", "tools")
        calls.append((f'{name}", "arguments": ', ref))
    return rules.add(('{"name": "', rules.add(*calls), "}"))


def _write_schema(
    rules: Rules, schema: dict[str, Any], *more: dict[str, Any], param: str, what: str
) -> Ref:
    try:
        return write_schema(rules, schema, *more)
    except (SchemaRefused, GrammarTooLarge) as error:
        raise _refuse(f"{what} cannot be enforced: {error}.", param) from None
    except RecursionError:
        raise  # which the server tells as a body that is nested too deeply
    except Exception:
        log.exception("a schema is neither refused nor enforced")
        raise _refuse(
            f"{what} cannot be enforced, for a reason that is not known.", param
        ) from None


def _check_size(text: str, param: str, what: str) -> None:
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise _refuse(f"{what} takes {size} bytes; at most {MAX_SCHEMA_BYTES} are possible.", param)


def _refuse(message: str, param: str) -> WireError:
    return bad_request(message, param, "invalid_schema")
