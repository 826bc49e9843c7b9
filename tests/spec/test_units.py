"""Quantities as people write them: round trips, exactness, and refusals that help."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.units import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_count,
    parse_duration_s,
)

DURATIONS = {
    "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400,
    "w": 604800, "": 1,
}  # fmt: skip
SIZES = {
    "B": 1, "kB": 1e3, "KB": 1e3, "K": 1e3, "MB": 1e6, "M": 1e6, "GB": 1e9, "G": 1e9, "TB": 1e12,
    "T": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "": 1,
}  # fmt: skip
COUNTS = {"": 1, "k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "B": 1e9}
PARSERS = [parse_duration_s, parse_bytes, parse_count]


@pytest.mark.parametrize(("unit", "size"), DURATIONS.items())
def test_every_unit_of_time(unit: str, size: float) -> None:
    assert parse_duration_s(f"3{unit}") == pytest.approx(3 * size, rel=1e-15)
    assert parse_duration_s(f" 1.5 {unit} ") == pytest.approx(1.5 * size, rel=1e-15)
    assert parse_duration_s(f".5{unit}") == pytest.approx(0.5 * size, rel=1e-15)


@pytest.mark.parametrize(("unit", "size"), SIZES.items())
def test_every_unit_of_size(unit: str, size: float) -> None:
    assert parse_bytes(f"3{unit}") == 3 * size
    assert parse_bytes(f"2.5 {unit}") == round(2.5 * size)
    assert isinstance(parse_bytes(f"3{unit}"), int)


@pytest.mark.parametrize(("unit", "size"), COUNTS.items())
def test_every_unit_of_count(unit: str, size: float) -> None:
    assert parse_count(f"3{unit}") == 3 * size
    assert isinstance(parse_count(f"3{unit}"), int)


def test_bare_numbers_are_in_the_base_unit() -> None:
    assert parse_duration_s(2.5) == parse_duration_s("2.5") == 2.5
    assert isinstance(parse_duration_s(2), float)
    assert parse_bytes(1000) == parse_bytes("1000") == 1000
    assert parse_count(7) == parse_count(7.0) == parse_count("7") == parse_count("0.007k") == 7


# Exactness


@given(st.integers(0, 10**29))
def test_whole_numbers_come_back_as_they_were_written(value: int) -> None:
    assert parse_count(str(value)) == parse_count(value) == value
    assert parse_bytes(str(value)) == parse_bytes(value) == value
    assert parse_count(f"{value}k") == value * 1000


@given(st.integers(0, 10**9), st.integers(1, 3))
def test_decimal_fractions_are_exact(thousandths: int, power: int) -> None:
    unit = {1: "K", 2: "M", 3: "G"}[power]
    text = f"{thousandths // 1000}.{thousandths % 1000:03}"
    assert parse_bytes(f"{text}{unit}B") == thousandths * 1000 ** (power - 1)
    assert parse_count(f"{text}k") == thousandths


@given(st.floats(0, 1e9).filter(lambda x: x == 0 or x > 1e-9))
def test_durations_come_back_as_they_were_written(seconds: float) -> None:
    text = f"{seconds:.20f}"
    assert parse_duration_s(f"{text}s") == pytest.approx(seconds, rel=1e-9, abs=1e-15)
    assert parse_duration_s(seconds) == seconds


# Refusals


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "value",
    [
        "", " ", "s", "-5", "+5", "5 5", "5,5", "1e3", "0x10", "1_000", "5..5", "5.", ".", "五",
        "\uff15", "five", "inf", "nan", "5\n5", "5s5s", "9" * 31, "9" * 5000, "1." + "0" * 31,
        -1, -0.5, float("nan"), float("inf"), 10**31, 10**400, True, False, None, [], {}, b"5",
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_what_would_be(parse: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="such as") as caught:
        parse(value)
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(repr(value))


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_duration_s, "5x", "'5x' has the unknown unit 'x'; write a duration such as 500ms, 10s, 15m, 2h or 7d"),
        (parse_duration_s, "5S", "'5S' has the unknown unit 'S'; write a duration such as 500ms, 10s, 15m, 2h or 7d"),
        (parse_duration_s, "5MB", "'5MB' has the unknown unit 'MB'; write a duration such as 500ms, 10s, 15m, 2h or 7d"),
        (parse_bytes, "5mb", "'5mb' has the unknown unit 'mb'; write a size such as 512KB, 256MB or 2GiB"),
        (parse_bytes, "5m", "'5m' has the unknown unit 'm'; write a size such as 512KB, 256MB or 2GiB"),
        (parse_bytes, "soon", "'soon' is not a size such as 512KB, 256MB or 2GiB"),
        (parse_count, "5G", "'5G' has the unknown unit 'G'; write a whole number such as 600, 200k or 1M"),
        (parse_count, "1.5", "'1.5' is not a whole number"),
        (parse_count, "0.0001k", "'0.0001k' is not a whole number"),
        (parse_count, 1.5, "1.5 is not a whole number"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_wrong_and_what_to_write(
    parse: Any, text: Any, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == message


@given(st.sampled_from(PARSERS), st.text(max_size=12) | st.integers() | st.floats() | st.booleans())
def test_anything_is_a_finite_quantity_or_a_value_error(parse: Any, value: Any) -> None:
    try:
        quantity = parse(value)
    except ValueError:
        return
    assert quantity >= 0
    assert math.isfinite(quantity)


# For people


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (999.6, "1.0 kB"), (1000, "1.0 kB"),
        (9_949, "9.9 kB"), (9_951, "10 kB"), (93_400_000, "93 MB"), (999_499_999, "999 MB"),
        (999_500_000, "1.0 GB"), (1_340_000_000, "1.3 GB"), (2.5e12, "2.5 TB"), (3e15, "3000.0 TB"),
    ],
)  # fmt: skip
def test_sizes_are_shown_short(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**15))
def test_a_size_that_is_shown_can_be_written(count: int) -> None:
    text = format_bytes(count)
    assert parse_bytes(text) == pytest.approx(count, rel=0.051)
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"), (310e-6, "310 us"), (999.4e-6, "999 us"), (999.9e-6, "1 ms"), (0.045, "45 ms"),
        (0.9994, "999 ms"), (0.99999, "1.0 s"), (3.21, "3.2 s"), (59.94, "59.9 s"),
        (59.97, "1 min 0 s"), (250, "4 min 10 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min"),
        (7260, "2 h 1 min"), (90_000, "25 h 0 min"),
    ],
)  # fmt: skip
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e6))
def test_no_duration_is_shown_as_a_thousand_or_sixty(seconds: float) -> None:
    words = format_duration(seconds).split()
    for number, unit in zip(words[::2], words[1::2], strict=True):
        assert float(number) < {"us": 1000, "ms": 1000, "s": 60, "min": 60, "h": 1e9}[unit]
