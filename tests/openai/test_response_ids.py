"""Ids of responses: unique, ordered by time, and distinguishable from other text."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.base32 import ALPHABET, decode, encode
from thrifty.openai.response_ids import ID_CHARS, ResponseIds, read_time_s

SECRET = bytes(range(32))
TENANTS = st.text(max_size=12)


class Clock:
    """A clock that returns the time it is set to."""

    def __init__(self, now_s: float = 1.8e9) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.floats(-1e9, 3.7e9) | st.sampled_from([0.0, 1.8e9]), max_size=40), st.data())
def test_numbers_increase_whatever_the_clock_does(times: list[float], data: st.DataObject) -> None:
    clock = Clock()
    ids = ResponseIds(SECRET, 7, clock)
    numbers, texts = [], []
    for now_s in times:
        clock.now_s = now_s
        if data.draw(st.integers(0, 9)) == 0:
            ids.node = data.draw(st.integers(0, 1023))
        made = ids.new("t")
        numbers.append(made.number)
        texts.append(made.text)
        assert made.number >> 12 & 1023 == ids.node
    assert numbers == sorted(set(numbers))
    assert texts == sorted(texts)


def test_more_ids_than_a_millisecond_holds_run_ahead_of_the_clock() -> None:
    ids = ResponseIds(SECRET, 1023, Clock(1.8e9))
    made = [ids.new("t") for _ in range(20_000)]
    numbers = [each.number for each in made]
    assert numbers == sorted(set(numbers))
    assert {number >> 12 & 1023 for number in numbers} == {1023}
    assert read_time_s(numbers[0]) == 1.8e9
    assert 1.8e9 + 0.004 <= read_time_s(numbers[-1]) <= 1.8e9 + 0.006
    assert [each.text for each in made] == sorted(each.text for each in made)


def test_threads_never_get_the_same_number() -> None:
    ids = ResponseIds(SECRET, 0, Clock())
    found: list[int] = []

    def work() -> None:
        found.extend([ids.new("t").number for _ in range(3000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 12_000


def test_an_id_contains_its_creation_time() -> None:
    before_s = time.time()
    made = ResponseIds(SECRET, 3).new("t")
    assert before_s - 0.002 <= read_time_s(made.number) <= time.time() + 0.002
    assert 0 < made.number < 2**63


@given(TENANTS, TENANTS, st.sampled_from(["", "chatcmpl-", "cmpl-", "embd-", "a-b-"]))
def test_an_id_is_verified_for_its_tenant_only(tenant: str, other: str, prefix: str) -> None:
    ids = ResponseIds(SECRET, 5)
    made = ids.new(tenant)
    assert len(made.text) == ID_CHARS
    assert ids.parse(prefix + made.text, tenant) == made.number
    assert ResponseIds(SECRET, 9).parse(prefix + made.text, tenant) == made.number
    assert ResponseIds(SECRET[::-1], 5).parse(made.text, tenant) is None
    if other != tenant:
        assert ids.parse(made.text, other) is None


@given(st.data())
def test_any_change_makes_it_foreign(data: st.DataObject) -> None:
    ids = ResponseIds(SECRET, 5)
    text = ids.new("t").text
    place = data.draw(st.integers(0, ID_CHARS - 1))
    letter = data.draw(st.sampled_from(ALPHABET + "ilou-_ é٣\0\ud800A"))
    changed = text[:place] + letter + text[place + 1 :]
    assert (ids.parse(changed, "t") is None) == (changed != text)
    for broken in (text + letter, text[1:], text.upper(), f"{text}-", letter + text):
        if broken not in (text, f"-{text}"):
            assert ids.parse(broken, "t") is None


@given(st.text() | st.text(ALPHABET, min_size=ID_CHARS, max_size=ID_CHARS))
def test_foreign_text_is_foreign(text: str) -> None:
    assert ResponseIds(SECRET, 5).parse(text, "t") is None


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="16 to 64"):
        ResponseIds(b"short", 0)
    with pytest.raises(ValueError, match="0 to 1023"):
        ResponseIds(SECRET, 1024)


@given(st.integers(0, 2**65 - 1))
def test_base_32_keeps_numbers_and_their_order(number: int) -> None:
    text = encode(number, 13)
    assert (len(text), decode(text)) == (13, number)
    if number:
        assert encode(number - 1, 13) < text


@pytest.mark.parametrize("text", ["", "i", "A", "1_0", " 1", "+1", "٣", "0u1"])
def test_base_32_is_strict(text: str) -> None:
    assert decode(text) is None
