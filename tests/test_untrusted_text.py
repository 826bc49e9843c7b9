"""Text from outside: one line, bounded, printable."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from thrifty.gateway.app.merge_metrics import merge_pages
from thrifty.untrusted_text import LineFormatter, sanitize_line, to_text

TEXT = st.text(st.characters(codec=None), max_size=80)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=6,
)


@given(JSON, st.integers(1, 64))
def test_any_value_is_one_bounded_printable_line(value: Any, limit: int) -> None:
    line = sanitize_line(value, limit)
    assert len(line) <= limit
    assert line.isprintable()
    line.encode()
    assert sanitize_line(line, limit) == line


@given(TEXT.filter(str.isprintable))
def test_what_is_harmless_stays(text: str) -> None:
    assert sanitize_line(text, 80) == text == to_text(text)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (500, "500"), (None, ""), (True, "true"), (1.5, "1.5"), ("a\nb", "a\\nb"), ("\0", "\\x00"),
        ("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ({"a": [1]}, '{"a":[1]}'),
        ("\U0001f600", "\U0001f600"), (["\ud800"], "['\\ud800']"),
    ],
)  # fmt: skip
def test_values_are_shown(value: Any, line: str) -> None:
    assert sanitize_line(value, 64) == line


@given(st.lists(JSON, min_size=1, max_size=4))
def test_every_line_is_a_label_that_prometheus_reads_back(values: list[Any]) -> None:
    registry = CollectorRegistry()
    counter = Counter("x", "x", ["kind"], registry=registry)
    kinds = {sanitize_line(value, 64) for value in values}
    for kind in kinds:
        counter.labels(kind).inc()
    page = generate_latest(registry)
    for text in (page, merge_pages({"one": page})):
        found = {
            sample.labels["kind"]
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == "x_total"
        }
        assert found == kinds


def test_a_message_cannot_forge_a_line_of_the_log() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    log = logging.getLogger("tests.untrusted")
    log.propagate = False
    log.addHandler(handler)
    log.warning("a path: %s", "/v1\r\nINFO forged\u2028x\x1b[2J")
    try:
        raise ValueError("real")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "WARNING a path: /v1\\r\\nINFO forged\\u2028x\\x1b[2J"
    assert lines[1:3] == ["ERROR failed", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: real"
