"""Schemas as grammars, without an engine: what is enforced, what is refused, and what it costs."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.engines.random_schemas import Maker, Schema, judge
from tests.engines.sentences import Sentences
from thrifty.engines.server.backend import Grammar
from thrifty.engines.server.binding import MAX_SCHEMA_BYTES, bind_answer
from thrifty.engines.server.grammar.automata import complement, intersect, limit_length, only
from thrifty.engines.server.grammar.formats import PATTERNS, find_format
from thrifty.engines.server.grammar.numbers import Bounds, write_numbers
from thrifty.engines.server.grammar.patterns import (
    PatternRefused,
    check_pattern,
    find_texts,
    is_repeated_class,
    match_texts,
)
from thrifty.engines.server.tools import ToolPlan
from thrifty.openai.errors import WireError

VOCABULARY = 50_000


def bind(schema: Schema, vocabulary_size: int = VOCABULARY) -> Grammar:
    grammar = bind_answer(schema, ToolPlan(), vocabulary_size)
    assert grammar is not None
    return grammar


def write_answers(schema: Schema, count: int = 3, seed: int = 0) -> list[str]:
    sentences = Sentences(bind(schema).text)
    return [sentences.write(random.Random(seed + i)) for i in range(count)]


def refusal(schema: Schema) -> str:
    with pytest.raises(WireError) as raised:
        bind(schema)
    error = raised.value
    assert (error.status, error.param, error.code) == (400, "response_format", "invalid_schema")
    return error.message


# patterns


REGEXES = ["a", "^a", "a$", "^a$", "^$", "", "a|b", "^(a|b)*$", "[ab]{2,3}", "^[^a]+$", r"^\d+$", r"\D",
           r"^\w*$", r"^\W$", r"\s", r"^\S*$", ".", "^a?b+c*$", "(ab|c)d", "^(?:a|b|)c", "a{0}", "^a{2}$",
           "^a{2,}$", r"\.", r"[\]\-a]", "[a-c-]", r"\x61", r"\u0062", r"^\u{62}$", "x{", "^^a$$",
           "a^b", "$a", "(a)(b)", "(?<n>a)b", "^[]b]", "a*?b", r"^[\d_]+$", r"\/", "é"]  # fmt: skip


@pytest.mark.parametrize("pattern", REGEXES)
def test_patterns_find_what_python_finds(pattern: str) -> None:
    if pattern == "^[]b]":  # an empty class in ECMA, which matches nothing
        assert find_texts(pattern).empty
        return
    plain = re.sub(r"\\u\{(\w+)\}", r"\\u00\1", pattern).replace("(?<n>", "(?P<n>")
    certain, possible = find_texts(pattern), find_texts(pattern, wide=True)
    rng = random.Random(pattern)
    texts = [
        "",
        *("".join(rng.choices("abcd-_]x{ 1.é٣\n/\u2028", k=rng.randint(1, 5))) for _ in range(600)),
    ]
    for text in texts:
        readings = {re.search(plain, text, flags) is not None for flags in (re.UNICODE, re.ASCII)}
        assert not (certain.accepts(text) and False in readings), (pattern, text)
        assert possible.accepts(text) or True not in readings, (pattern, text)
        if text.isascii() and "\n" not in text:
            assert {certain.accepts(text)} == {possible.accepts(text)} == readings, (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(?=a)b", "looks around"), ("(?<!a)b", "looks around"), (r"(a)\1", "refers back"), (r"\bword", "borders of words"),
     (r"\p{L}", "Unicode's classes"), ("[", "ends too early"), ("(a", "does not end"), ("a)", "')' too many"),
     ("*a", "nothing can be repeated"), ("a**", "nothing can be repeated"), ("a{3,1}", "out of order"), ("[b-a]", "out of order"),
     (r"\uD800", "no character"), ("(?i)a", "not known"), (r"\q", "not known"), ("\\", "ends too early"),
     ("(" * 100, "nested too deeply"), ("a" * 5_000, "longer than"), ("a{1234567}", "too often"),
     ("a{,3}", "write '{0,3}'")],
)  # fmt: skip
def test_pattern_that_is_refused_says_why(pattern: str, reason: str) -> None:
    with pytest.raises(PatternRefused, match=re.escape(reason)):
        check_pattern(pattern)


def test_sets_of_texts_are_cut_and_joined() -> None:
    letters, twice = match_texts("[a-z]*"), match_texts("(..)*")
    both = intersect(letters, twice)
    assert both.accepts("ab")
    assert not both.accepts("abc")
    assert not both.accepts("1b")
    others = complement(only(["ab", "é", ""]))
    assert [others.accepts(t) for t in ("", "a", "ab", "abc", "é", "ü")] == [
        False, True, False, True, False, True,
    ]  # fmt: skip
    short = limit_length(letters, 2, 3)
    assert [short.accepts("a" * n) for n in range(5)] == [False, False, True, True, False]
    assert intersect(letters, match_texts("[0-9]")).empty
    assert match_texts("a{2,5}").find_lengths() == (2, 5)
    assert letters.find_lengths() == (0, None)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("[a-z]{1,200}", (((97, 122),), 1, 200)), ("[ab]*", (((97, 98),), 0, None)), ("a+", (((97, 97),), 1, None)),
     ("ab", None), ("[a-z]?[0-9]", None), ("(aa)*", None), ("", None)],
)  # fmt: skip
def test_repeated_classes_are_known(pattern: str, expected: Any) -> None:
    assert is_repeated_class(match_texts(pattern)) == expected


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_texts_of_a_format_are_valid(name: str) -> None:
    grammar = Sentences(bind({"type": "string", "format": name}).text)
    texts = [json.loads(grammar.write(random.Random(seed), budget=60)) for seed in range(200)]
    assert len(set(texts)) > 50
    checker = Draft202012Validator.FORMAT_CHECKER
    for text in texts:
        checker.check(text, name)
        automaton = find_format(name)
        assert automaton is not None
        assert automaton.accepts(text)


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [("date", "2024-02-28", True), ("date", "2024-02-30", False), ("date", "2020-12-31", True), ("date", "0000-01-01", False),
     ("date-time", "2024-01-01T23:59:59Z", True), ("date-time", "2024-01-01 23:59:59", False), ("time", "24:00:00Z", False),
     ("duration", "P1DT2H", True), ("duration", "P", False), ("duration", "P3W", True), ("duration", "PT", False),
     ("email", "ann.lee+x@example.com", True), ("email", "ann@", False), ("email", "a..b@example.com", False),
     ("hostname", "www.example.com", True), ("hostname", "-a.com", False), ("ipv4", "255.0.10.1", True), ("ipv4", "256.0.0.1", False),
     ("ipv6", "2001:db8::1", True), ("ipv6", "::", True), ("ipv6", "1::2::3", False), ("uuid", "123e4567-e89b-12d3-a456-426614174000", True),
     ("uri", "https://example.com/a?b=c#d", True), ("uri", "example", False), ("json-pointer", "/a~1b/0", True), ("json-pointer", "a", False)],
)  # fmt: skip
def test_formats_know_their_own(name: str, text: str, valid: bool) -> None:
    automaton = find_format(name)
    assert automaton is not None
    assert automaton.accepts(text) is valid


# numbers


LIMITS = st.one_of(
    st.none(),
    st.tuples(
        st.one_of(st.integers(-120, 120), st.integers(-1200, 1200).map(lambda n: n / 100)).map(
            lambda n: Decimal(str(n))
        ),
        st.booleans(),
    ),
)
MULTIPLES = st.sampled_from(
    [None, None, Fraction(1), Fraction(3), Fraction(7), Fraction(1, 2), Fraction(3, 100)]
)


@given(low=LIMITS, high=LIMITS, multiple=MULTIPLES, integer=st.booleans())
@example(low=(Decimal(0), True), high=None, multiple=None, integer=False)
@example(low=None, high=(Decimal("-0.5"), False), multiple=None, integer=False)
@example(low=(Decimal("0.07"), False), high=(Decimal("0.07"), False), multiple=None, integer=False)
def test_numbers_within_bounds_are_exactly_those(
    low: Any, high: Any, multiple: Any, integer: bool
) -> None:
    automaton = write_numbers(Bounds(integer, low, high, multiple))
    places = 0 if integer else 2
    for count in range(-13_000 if places else -130, 13_001 if places else 131, 7 if places else 1):
        value = Decimal(count).scaleb(-places)
        text = f"{value:f}"
        expected = (
            (low is None or value > low[0] or (value == low[0] and not low[1]))
            and (high is None or value < high[0] or (value == high[0] and not high[1]))
            and (multiple is None or (Fraction(value) / multiple).denominator == 1)
        )
        if multiple is not None:
            text = f"{value.normalize():f}"
        assert automaton.accepts(text) is expected, text
    for text in ("", "-", "-0", "00", "01", "1.", ".5", "1e5", "-0.0", "+1"):
        assert not automaton.accepts(text)


def test_numbers_have_a_bounded_length() -> None:
    integers, numbers = write_numbers(Bounds(True)), write_numbers(Bounds(False))
    assert integers.accepts("9" * 18)
    assert not integers.accepts("9" * 19)
    assert numbers.accepts("1.5")
    assert numbers.accepts("123456789012345")
    assert not numbers.accepts("1.234567890123456")
    assert write_numbers(Bounds(True, low=(Decimal(10**30), False))).accepts(str(10**30 + 1))


@pytest.mark.parametrize("zero", ["0", "-0.0"])
def test_bound_of_zero_may_have_a_sign(zero: str) -> None:
    automaton = write_numbers(Bounds(False, (Decimal(zero), False), (Decimal(zero), False)))
    assert automaton.accepts("0")
    assert not automaton.accepts("0.1")
    below = write_numbers(Bounds(False, high=(Decimal(zero), True)))
    assert below.accepts("-0.5")
    assert not below.accepts("0")


def test_different_bounded_numbers_stay_different_as_floats() -> None:
    automaton = write_numbers(Bounds(False, high=(Decimal("0.3"), True)))
    assert automaton.accepts("0.29999999999999")
    assert not automaton.accepts("0.29999999999999999")


# schemas


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_sentences_of_any_schema_satisfy_it(seed: int) -> None:
    check_sentences("any", range(seed, seed + 100))


@pytest.mark.parametrize("seed", range(0, 120, 40))
@pytest.mark.parametrize("kind", ["enforced", "strict"])
def test_schemas_of_enforced_keywords_are_taken_and_satisfied(kind: str, seed: int) -> None:
    check_sentences(kind, range(seed, seed + 40))


def check_sentences(kind: str, seeds: range) -> None:
    valid = 0
    for seed in seeds:
        maker = Maker(seed)
        make = {"any": maker.any_schema, "enforced": maker.enforced, "strict": maker.strict}
        schema = make[kind]()
        if not isinstance(schema, dict):
            continue
        try:
            answers = write_answers(schema, seed=seed)
        except WireError as error:
            if kind == "any" and error.code == "invalid_schema":
                continue
            raise
        for answer in answers:
            choice = {"finish_reason": "stop", "message": {"content": answer}}
            assert judge(schema, 200, {"choices": [choice]}) == "valid", schema
            valid += 1
    assert valid > len(seeds)


STRING, NUMBER = {"type": "string"}, {"type": "number"}
NOT_ENFORCED: list[tuple[Schema, str]] = [
    ({"type": "array", "uniqueItems": True}, "'uniqueItems' cannot be enforced (at '#/uniqueItems')"),
    ({"properties": {"x": {"type": "array", "contains": {"const": 5}}}}, "(at '#/properties/x/contains')"),
    ({"not": {"minLength": 3}}, "'not' can be enforced with"),
    ({"type": "number", "not": {"const": 5}}, "'not' of a value of the type integer"),
    ({"type": "number", "not": {"type": "integer"}}, "'not'"),
    ({"type": "string", "if": {"minLength": 1}, "then": {"maxLength": 3}}, "'if' cannot be enforced"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, "'oneOf' has alternatives that may hold together"),
    ({"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, "'oneOf'"),
    ({"$ref": "https://example.com/s.json"}, "'$ref' to 'https://example.com/s.json' leads out"),
    ({"$ref": "#/$defs/none"}, "points to nothing"),
    ({"$ref": "#"}, "leads in a circle"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "in a circle"),
    ({"$ref": "#name"}, "no path of the form"),
    ({"$dynamicRef": "#a"}, "'$dynamicRef' is not known"),
    ({"properties": {"a": {"$id": "x", "type": "null"}}}, "'$id'"),
    ({"type": "string", "pattern": "(?=a)"}, "'pattern' '(?=a)' cannot be enforced: it looks around"),
    ({"patternProperties": {r"\bx": STRING}}, "'patternProperties'"),
    ({"type": "string", "format": "regex"}, "'format'"),
    ({"type": "object", "unevaluatedProperties": False}, "'unevaluatedProperties'"),
    ({"type": "array", "unevaluatedItems": False}, "'unevaluatedItems'"),
    ({"type": "object", "minProperties": 2}, "'minProperties' above 1"),
    ({"dependencies": {"a": ["b"]}}, "use 'dependentRequired'"),
    ({"additionalItems": False}, "use 'prefixItems'"),
    ({"type": "integer", "multipleOf": 4096}, "'multipleOf' may have"),
    # not valid
    ({"type": "strin"}, "'type' must be one or more of null, boolean"),
    ({"type": ["string", "string"]}, "'type' must be"),
    ({"minLength": "3"}, "'minLength' must be a whole number from 0"),
    ({"minLength": True}, "'minLength' must be"),
    ({"exclusiveMinimum": True}, "'exclusiveMinimum' must be a number"),
    ({"multipleOf": 0}, "'multipleOf' must be a number above 0"),
    ({"items": [STRING]}, "'items' must be a schema"),
    ({"required": "a"}, "'required' must be an array of names"),
    ({"anyOf": []}, "'anyOf' must be a non-empty array of schemas"),
    ({"properties": {"a": 5}}, "'properties' must be an object of schemas"),
    ({"$defs": {"unused": {"items": [1]}}}, "(at '#/$defs/unused/items')"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), NOT_ENFORCED, ids=range(len(NOT_ENFORCED)))
def test_what_is_not_enforced_is_refused_by_its_name_and_place(schema: Schema, reason: str) -> None:
    assert reason in refusal(schema)


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer", "enum": ["x"]}, {"type": "string", "minLength": 3, "maxLength": 2}, {"type": "integer", "minimum": 5, "maximum": 4},
     {"not": {}}, {"enum": []}, {"allOf": [{"type": "string"}, {"type": "null"}]}, {"const": 5, "not": {"const": 5}},
     {"type": "object", "required": ["a"], "additionalProperties": False}, {"type": "string", "pattern": "^a$", "minLength": 2},
     {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}},
     {"type": "array", "items": False, "minItems": 1}, {"type": "object", "required": ["a"], "maxProperties": 0}],
    ids=range(12),
)  # fmt: skip
def test_schema_that_nothing_satisfies_is_refused(schema: Schema) -> None:
    assert refusal(schema) == "No value satisfies the schema in 'response_format'."


TREE = {"$defs": {"t": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
        "required": ["kids"], "additionalProperties": False}}, "$ref": "#/$defs/t"}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "answers", "others"),
    [
        ({"type": "integer", "enum": ["x", 5]}, {"5"}, None),
        ({"enum": [1, 1.0, "a", None], "not": {"const": None}}, {"1", '"a"'}, None),
        ({"enum": [[1, 1], [1, 2], [2, 5]], "uniqueItems": True, "contains": {"const": 2}}, {"[1, 2]", "[2, 5]"}, None),
        ({"$ref": "#/$defs/s", "maxLength": 0, "$defs": {"s": STRING}}, {'""'}, None),
        ({"type": "object", "required": ["a"], "properties": {"a": {"const": 1}, "b": False}}, {'{"a":1}'}, None),
        ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "minProperties": 2}, {'{"a":1,"b":2}'}, None),
        ({"type": "array", "prefixItems": [{"const": 1}], "minItems": 1}, {"[1]"}, None),
        ({"type": "boolean", "not": {"const": True}}, {"false"}, None),
        ({"type": ["null", "string"], "not": {"type": "string"}}, {"null"}, None),
        ({"oneOf": [{"properties": {"k": {"const": "a"}}, "required": ["k"]}, {"properties": {"k": {"const": "b"}}, "required": ["k"]}]},
         {'{"k":"a"}', '{"k":"b"}'}, None),
        ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "dependentRequired": {"a": ["b"]}},
         {"{}", '{"b":2}', '{"a":1,"b":2}'}, None),
        ({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 3}, {"[1,1]", "[1,1,1]"}, None),
        ({"type": "integer", "minimum": -3, "maximum": 9, "multipleOf": 4}, {"0", "4", "8"}, None),
        ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}, {"0", "0.25", "0.5", "0.75", "1"}, None),
    ],
    ids=range(14),
)  # fmt: skip
def test_these_are_the_answers(schema: Schema, answers: set[str], others: None) -> None:
    """All of them, and no others (white space aside)."""
    written = {
        re.sub(r"[\n\t]| (?=[^\d])(?<=[,:\[{ ]) *", "", a) for a in write_answers(schema, 300)
    }
    plain = {json.dumps(json.loads(a)) for a in written}
    assert plain == {json.dumps(json.loads(a)) for a in answers}


def test_properties_come_in_the_order_of_the_schema() -> None:
    for names in (["b", "a", "c"], ["c", "b", "a"]):
        schema = {
            "type": "object",
            "properties": {n: {"type": "null"} for n in names},
            "required": ["a", "b", "c"],
        }
        assert all(list(json.loads(answer)) == names for answer in write_answers(schema))


def test_objects_get_other_properties_only_where_a_schema_speaks_of_them() -> None:
    closed = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert all(set(json.loads(a)) <= {"a"} for a in write_answers(closed, 50))
    open_ = [
        {"type": "object"},
        {**closed, "additionalProperties": True},
        {**closed, "patternProperties": {"^x": {}}},
    ]
    for schema in open_:
        assert any(set(json.loads(a)) - {"a"} for a in write_answers(schema, 50))


def test_recursion_ends() -> None:
    for answer in write_answers(TREE, 30):
        assert set(json.loads(answer)) == {"kids"}


# what it costs


def test_a_bound_on_a_length_costs_the_same_whatever_it_is() -> None:
    efforts = {n: bind({"type": "string", "maxLength": n}).effort for n in (17, 200, 50_000)}
    assert len(set(efforts.values())) == 1
    six = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "maxLength": 50_000 + n} for n in range(6)},
    }
    assert bind(six).effort < 1.3 * efforts[200]
    assert bind({"type": "string", "pattern": "^[a-z ]{1,200}$"}).effort < efforts[200]
    assert len(bind({"type": "array", "items": {"type": "null"}, "maxItems": 100_000}).text) < 5_000


def test_schema_that_would_take_too_long_is_refused() -> None:
    heavy = {"type": "string", "pattern": "^([a-z ]x){1300}$"}
    assert "places that nearly any token may take" in refusal(heavy)
    light = {"type": "string", "pattern": "^([a-z ]x){300}$"}
    assert bind(light).effort > 0
    with pytest.raises(WireError, match="260000 tokens"):
        bind(light, 260_000)


def test_schema_that_is_too_large_is_refused() -> None:
    schema: Schema = {"type": "null"}
    while len(json.dumps(schema)) <= MAX_SCHEMA_BYTES:
        schema = {"type": "object", "properties": {"x" * 3_000: schema}}
    assert f"at most {MAX_SCHEMA_BYTES} are possible" in refusal(schema)


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "pattern": "(a|b)*a" + "(a|b)" * 30}, {"type": "string", "pattern": "((a{1,300}){1,300}){1,300}"},
     {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in "ab"]} for i in range(20)]},
     {"type": "integer", "minimum": 10**500}, {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(400)}, "minProperties": 200}],
    ids=range(5),
)  # fmt: skip
def test_schema_that_explodes_is_refused_in_little_time(schema: Schema) -> None:
    assert "cannot be enforced" in refusal(schema)


HIDDEN = [
    {"pattern": "(?=x)"}, {"minimum": "x"}, {"maxLength": "a"}, {"required": 5}, {"enum": 5}, {"items": [1]},
    {"properties": [1]}, {"multipleOf": 0}, {"allOf": {}}, {"type": 5}, {"properties": {"a": {"minimum": "x"}}},
    {"const": 1, "$ref": "#/components/schemas/A"}, {"format": 5}, {"patternProperties": {"(?=x)": {}}},
    {"dependentRequired": 5}, {"$ref": 5}, {"not": 5}, {"minItems": -1},
]  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN, ids=range(len(HIDDEN)))
def test_schema_is_judged_wherever_a_reference_finds_it(hidden: Schema) -> None:
    schema = {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": hidden}}}
    assert "cannot be enforced" in refusal(schema)


def test_reference_may_point_anywhere_and_has_to_find_something() -> None:
    schema = {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {"const": 7}}}}
    assert "7" in bind(schema).text
    for step in ("9" * 5_000, "1" * 9, "²", "-1", "x"):
        assert "points to nothing" in refusal({"$ref": f"#/enum/{step}", "enum": [{}]})


def test_messages_show_the_beginning_of_a_long_path() -> None:
    message = refusal({"properties": {"x" * 50_000: {"pattern": "(?=x)"}}})
    assert len(message) < 500


ANY_JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 5, 10**30, 0.5, 1e300, "", "a", "string", "#", "#/$defs/a", "^a$"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "enum", "const", "items", "properties", "required", "pattern", "$ref", "$defs",
                 "anyOf", "allOf", "not", "if", "then", "minimum", "multipleOf", "maxLength", "minItems",
                 "uniqueItems", "contains", "dependentRequired", "dependentSchemas", "propertyNames",
                 "patternProperties", "additionalProperties", "prefixItems", "format", "a"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=3), ANY_JSON, max_size=2), ANY_JSON)
def test_any_schema_is_enforced_or_refused_by_name(others: Schema, hidden: Any) -> None:
    for schema in ({"$ref": "#/x", "x": hidden, **others}, hidden):
        if not isinstance(schema, dict):
            continue
        try:
            bind(schema)
        except WireError as raised:
            error = raised
        else:
            continue
        assert error.code == "invalid_schema"
        assert "a reason that is not known" not in error.message


def test_schema_that_is_nested_too_deeply_raises_what_the_server_knows() -> None:
    schema: Schema = {"type": "null"}
    for _ in range(3_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RecursionError):
        bind(schema)


# tools


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


PLACE = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}}, "required": ["at"]}
ONE, TWO = (tool(name, {**PLACE, "$defs": {"Place": {"const": name}}}) for name in ("one", "two"))


def write_calls(plan: ToolPlan, schema: Schema | None = None) -> set[str]:
    grammar = bind_answer(schema, plan, VOCABULARY)
    assert grammar is not None
    sentences = Sentences(grammar.text)
    return {
        re.sub(r"(?<=[{:,])\s+|\s+(?=})", "", sentences.write(random.Random(n))) for n in range(200)
    }


def test_required_call_is_held_to_the_schema_of_its_tool() -> None:
    calls = write_calls(ToolPlan([ONE, TWO, tool("none"), tool("empty", {})], "required"))
    assert {(c["name"], json.dumps(c["arguments"])) for c in map(json.loads, calls)} == {
        ("one", '{"at": "one"}'), ("two", '{"at": "two"}'), ("none", "{}"), ("empty", "{}"),
    }  # fmt: skip


def test_only_allowed_tools_are_called() -> None:
    calls = write_calls(ToolPlan([ONE, TWO], "required", allowed=frozenset({"two"})))
    assert {json.loads(call)["name"] for call in calls} == {"two"}


def test_answer_is_a_call_or_by_the_schema() -> None:
    plan = ToolPlan([ONE], "auto", parallel=False, bare=False)
    answers = write_calls(plan, {"const": "yes"})
    call = '<tool_call>\n{"name":"one","arguments":{"at":"one"}}\n</tool_call>'
    assert answers == {'"yes"', call}
    assert len(write_calls(ToolPlan([ONE], "auto", bare=False), {"const": "yes"})) > 2
    # A call that must be made wins.
    assert write_calls(ToolPlan([ONE], "required"), {"const": "yes"}) == {
        '{"name":"one","arguments":{"at":"one"}}'
    }


@pytest.mark.parametrize("parallel", [True, False])
def test_possible_call_is_free_until_its_tag(parallel: bool) -> None:
    grammar = bind_answer(None, ToolPlan([ONE], "auto", parallel), VOCABULARY)
    assert grammar is not None
    assert f"loop_after_dispatch={'true' if parallel else 'false'}" in grammar.text


def test_fault_of_a_tool_names_it() -> None:
    bad = tool(
        "grow", {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}
    )
    for choice in ("auto", "required"):
        with pytest.raises(
            WireError, match=r"tool 'grow' cannot be enforced.*#/properties/a/pattern"
        ) as raised:
            bind_answer(None, ToolPlan([ONE, bad], choice), VOCABULARY)
        assert (raised.value.param, raised.value.code) == ("tools", "invalid_schema")
    with pytest.raises(WireError, match="No object satisfies the parameters of the tool 'text'"):
        bind_answer(None, ToolPlan([tool("text", {"type": "string"})], "auto"), VOCABULARY)
