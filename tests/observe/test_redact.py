"""Redaction: what is personal is replaced, what is not stays, and the same is the same."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.observe import pseudonyms, redact
from thrifty.observe.pseudonyms import MAX_LOOKS, Kind
from thrifty.observe.redact import PIECE_CHARS, Redactor, find_pseudonym
from thrifty.observe.texts import make_texts, redact_json
from thrifty.openai.fields import Endpoint

REDACTOR = Redactor(b"k" * 32)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("EMAIL", "ann.b+shop@mail.example.co.uk"),
        ("EMAIL", "O'Neil_7@example.com"),
        ("EMAIL", "jörg@bücher.example"),
        ("CARD", "4111 1111 1111 1111"),
        ("CARD", "3782-822463-10005"),
        ("CARD", "5018000000000009"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
        ("IBAN", "GB29NWBK60161331926819"),
        ("IBAN", "NO93 8601 1117 947"),
        ("IP", "192.168.17.4"),
        ("IP", "2001:db8:85a3::8a2e:370:7334"),
        ("IP", "::ffff:10.1.2.3"),
        ("PHONE", "+1-555-234-5678x123"),
        ("PHONE", "(212)555-1234"),
        ("PHONE", "212.555.1234"),
        ("PHONE", "2125551234"),
        ("PHONE", "+49 (0)171 123 45 67"),
        ("PHONE", "0171 1234567"),
        ("PHONE", "001-212-555-1234"),
        ("ID", "536-90-4399"),  # US
        ("ID", "130 692 544"),  # Canada
        ("ID", "1112.22.333"),  # the Netherlands
        ("ID", "529.982.247-25"),  # Brazil
        ("ID", "44051401359"),  # Poland
        ("ID", "86095742719"),  # Germany
        ("ID", "85.07.30-033.28"),  # Belgium
        ("ID", "811218-9876"),  # Sweden
        ("ID", "2341 2341 2346"),  # India
        ("ID", "255081416802538"),  # France
        ("ID", "11010519491231002X"),  # China
        ("ID", "12345678Z"),  # Spain
        ("ID", "AB 12 34 56 C"),  # Britain
        ("ID", "RSSMRA85T10A562S"),  # Italy
        ("ID", "131052-308T"),  # Finland
        ("SECRET", "sk-abcdefghijklmnop1234"),
        ("SECRET", "ghp_" + "a1" * 18),
        ("SECRET", "AKIAIOSFODNN7EXAMPLE"),
        ("SECRET", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123"),
        ("SECRET", "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_what_is_personal_is_replaced_wherever_it_stands(kind: str, value: str) -> None:
    for before, after in (
        ("", ""),
        ("It is ", "."),
        ("(", ")"),
        ("say: ", ", please"),
        ("\n", "\n"),
        ("in JSON:\\n", "\\n"),
    ):
        redacted = REDACTOR.redact(before + value + after)
        found = find_pseudonym(redacted)
        assert found is not None, (before, value)
        assert found.startswith(f"<{kind}_"), redacted
        assert redacted == before + found + after


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4.5 and 10.15.7 at 12:30:45 on 2024-01-15, 15.01.2024 or 01/15/2024",
        "pi is 3.14159265358979, e is 2.71828, the fee is $1,234,567.89",
        "order 1700000000, commit 3f786850e387550fdb9a, ISBN-less 12345",
        "4111 1111 1111 1112 fails Luhn, DE89370400440532013001 fails mod 97",
        "529.982.247-24, 44051401358 and 12345678A have wrong check digits",
        "std::vector<int>::size, ::1 and 127.0.0.1 are this machine",
        "password: required, token = None, user@localhost, a @ b, @mention",
        "chapters 1-12, pages 100-200, 1990-2000, 50%, 1e-9, 0x7fff, #12345678",
        "f(x) = 3 * x + 2; [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]",
        "0.4111111111111111 and 5.4111111111111111, issue #2125551234, file_2125551234.txt",
        "41111111\n11111111\n2023\n2024 is a column, \uff11\uff12\uff13\uff14 is a year",
    ],
)
def test_what_is_not_personal_stays(text: str) -> None:
    assert REDACTOR.redact(text) == text


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [
        ("CARD", "Card no.4111 1111 1111 1111", "Card no.{}"),
        ("CARD", "Card#4111 1111 1111 1111", "Card#{}"),
        ("CARD", "#4111111111111111", "#{}"),
        ("CARD", "1.4111 1111 1111 1111", "1.{}"),
        ("CARD", "_4111 1111 1111 1111_", "_{}_"),
        ("CARD", "4111 1111 1111 1111/12/27", "{}/12/27"),
        ("CARD", "4111111111111111(12/27)", "{}(12/27)"),
        ("CARD", "4111 1111 1111 1111 x2", "{} x2"),
        ("CARD", "Q3 4111 1111 1111 1111", "Q3 {}"),
        ("CARD", "4111.1111.1111.1111", "{}"),
        ("CARD", "4111\u20131111\u20131111\u20131111", "{}"),
        ("CARD", "4111\u202f1111\u00a01111\u30001111", "{}"),
        ("CARD", "4\u200b1\u200b1\u200b1 1111 1111\u2060 1111", "{}"),
        ("CARD", "\uff14\uff11\uff11\uff11" + " \uff11\uff11\uff11\uff11" * 3, "{}"),
        ("CARD", "\uff08\uff14" + "\uff11" * 15 + "\uff09", "\uff08{}\uff09"),
        ("CARD", "\u0664\u0661\u0661\u0661" + " \u0661\u0661\u0661\u0661" * 3, "{}"),
        ("CARD", "to 4111 1111\n> 1111 1111 now", "to {} now"),
        ("PHONE", "Tel.+49 30 12345678", "Tel.{}"),
        ("PHONE", "Tel.030 12345678", "Tel.{}"),
        ("PHONE", "Tel.#030 12345678", "Tel.#{}"),
        ("PHONE", "\u202a+49 30\u00a0123456\u00ad78\u202c", "\u202a{}\u202c"),
        ("PHONE", "\uff08\uff10\uff13\uff09\uff11\uff12\uff13\uff14\uff0d\uff15\uff16\uff17\uff18", "\uff08{}"),
        ("PHONE", "+49 30\r\n12345678", "{}"),
        ("ID", "SSN#123-45-6789", "SSN#{}"),
        ("ID", "__536-90-4399__", "__{}__"),
        ("ID", "536\u201390\u20134399", "{}"),
        ("IBAN", "iban de89 3704 0044 0532 0130 00", "iban {}"),
        ("IBAN", "BIC DEUTDE55 DE89 3704 0044 0532 0130 00", "BIC DEUTDE55 {}"),
        ("IBAN", "AB12 DE89 3704 0044\n0532 0130 00.", "AB12 {}."),
        ("IBAN", "_DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000_", "_{}_"),
        ("IP", "IP.192.168.17.4", "IP.{}"),
        ("SECRET", "password:  correct-horse-bat", "password:  {}"),
        ("SECRET", "use sk-abcdefghijklmnopqrst", "use {}"),
    ],
)  # fmt: skip
def test_no_way_of_writing_hides_what_is_personal(kind: str, text: str, kept: str) -> None:
    redacted = REDACTOR.redact(text)
    found = find_pseudonym(redacted)
    assert found is not None, redacted
    assert found.startswith(f"<{kind}_"), redacted
    assert redacted == kept.format(found)


def test_however_a_number_is_written_its_pseudonym_is_the_same() -> None:
    ways = ["4111 1111 1111 1111", "\uff14" + "1" * 15, "4111\u00a01111\u200b1111-1111"]
    assert len({REDACTOR.redact(way) for way in ways}) == 1
    assert REDACTOR.redact("de89370400440532013000") == REDACTOR.redact("DE89370400440532013000")


@pytest.mark.parametrize("between", [" ", "/", "  ", ", ", "\n"])
def test_each_number_of_a_long_list_is_found(between: str) -> None:
    numbers = [f"0171 12345{place}" for place in range(10, 50)]
    redacted = REDACTOR.redact(between.join(numbers))
    assert redacted.count("<PHONE_") == len(numbers)
    assert not set("0123456789") & set(redacted)


def test_secrets_are_known_by_where_they_stand() -> None:
    assert REDACTOR.redact("password: hunter22!").startswith("password: <SECRET_")
    assert REDACTOR.redact('{"api_key": "abc123def"}').startswith('{"api_key": "<SECRET_')
    url = REDACTOR.redact("postgres://bob:pa55word@db/x")
    assert "pa55word" not in url
    assert url.startswith("postgres://bob:<SECRET_")
    assert REDACTOR.redact("Authorization: Bearer abcdefghijklmnop1234").count("<SECRET_") == 1


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("redis://:hunter2secret@db:6379/0", "hunter2secret"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("BEARER abcdefghijklmnopqrstu", "abcdefghijklmnopqrstu"),
        ("use gsk_" + "aB3" * 17, "aB3aB3"),
        ("use xai-" + "aB3" * 20, "aB3aB3"),
        ("use r8_" + "aB3" * 12, "aB3aB3"),
        ("use rk_live_" + "aB3" * 9, "aB3aB3"),
        ("use whsec_" + "aB3" * 10, "aB3aB3"),
        ("use xapp-1-A0B-123-" + "ab1" * 9, "ab1ab1"),
        ("use dop_v1_" + "ab3" * 21, "ab3ab3"),
        ("https://hooks.slack.com/services/Tabc/Bdef/abcdefghijklmnopqrst", "abcdefghij"),
        ("Endpoint=x;AccountKey=aB3d+aB3d/aB3d==;", "aB3d"),
        ("private_key = abcdefgh1234", "abcdefgh1234"),
        ("Password\uff1ahunter2secret", "hunter2secret"),
        (r'"{\"password\": \"hunter2secret\"}"', "hunter2secret"),
        (r"{\\\"password\\\":\\\"hunter2secret\\\"}", "hunter2secret"),
    ],
)
def test_secrets_of_more_kinds_and_ways_of_writing_are_found(text: str, secret: str) -> None:
    redacted = REDACTOR.redact(text)
    assert secret not in redacted
    assert redacted.count("<SECRET_") == 1
    assert redacted.count('"') == text.count('"')
    assert redacted.count("\\") == text.count("\\")


def test_words_that_look_like_schemes_stay() -> None:
    for text in ("Basic understanding of physics", "the bearer of this letter", "basic arithmetic"):
        assert REDACTOR.redact(text) == text


def test_numbers_beside_each_other_are_told_apart() -> None:
    text = "In 2023 4111 1111 1111 1111 and 4111111111111111 5500005555555559."
    redacted = REDACTOR.redact(text)
    assert redacted.startswith("In 2023 <CARD_")
    assert redacted.count("<CARD_") == 3
    assert not set("456789") & set(redacted)


def test_the_same_value_is_the_same_pseudonym_within_a_tenant() -> None:
    ways = ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"]
    assert len({REDACTOR.redact(way) for way in ways}) == 1
    assert REDACTOR.redact("Ann@Example.com") == REDACTOR.redact("ann@example.com")
    assert REDACTOR.redact("a@b.example") != REDACTOR.redact("c@b.example")
    assert REDACTOR.redact("a@b.example", "red") != REDACTOR.redact("a@b.example", "blue")
    assert REDACTOR.redact("a@b.example") != Redactor(b"x" * 32).redact("a@b.example")


PERSONAL = st.sampled_from(
    ["ann@example.com", "4111 1111 1111 1111", "+1 212 555 1234", "192.168.17.4",
     "DE89370400440532013000", "536-90-4399"]
)  # fmt: skip


@given(st.lists(st.one_of(PERSONAL, st.text(max_size=30)), max_size=8))
def test_redacting_twice_changes_nothing_more(parts: list[str]) -> None:
    once = REDACTOR.redact(" ; ".join(parts))
    assert REDACTOR.redact(once) == once
    for value in ("ann@example.com", "192.168.17.4"):
        if value in parts:
            assert value not in once.split(" ; ")


@given(st.text(max_size=300))
def test_any_text_can_be_redacted(text: str) -> None:
    assert isinstance(REDACTOR.redact(text), str)


@pytest.mark.parametrize(
    "text",
    ["a" * 40_000 + "@", "1" * 40_000, "1 " * 20_000, "a." * 20_000 + "@x1", ":" * 40_000,
     "A1" * 20_000, "-----BEGIN PRIVATE KEY-----" * 2_000, "password=" * 20_000, "@a.b" * 40_000,
     "1.1.1.1." * 20_000, "DE89" * 40_000, "(" * 40_000 + "1", "+1" * 20_000],
    ids=range(13),
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begun_s = time.process_time()
    REDACTOR.redact(text)
    assert time.process_time() - begun_s < 5


@pytest.mark.parametrize(
    "text",
    [
        "1234 " * 40_000, "12-" * 40_000, "1 " * 40_000, "4999 1999 2999 3999\n" * 20_000,
        "1 2 3 4 5 6 7 8\n" * 20_000, "+1234 (5678) " * 20_000, "\uff11\uff12\uff13\uff14 " * 20_000,
    ],
    ids=range(7),
)  # fmt: skip
def test_numbers_without_end_are_looked_at_up_to_a_bound(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()

    def classify(written: str, text: str, start: int) -> tuple[Kind, str] | None:
        looks["all"] += 1
        return classify_number(written, text, start)

    classify_number = redact._classify
    monkeypatch.setattr(redact, "_classify", classify)
    REDACTOR.redact(text)
    assert looks["all"] <= MAX_LOOKS


def test_numbers_beyond_the_bound_are_replaced_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "we had 1234 5678 and 4111 1111 1111 1111 in 1999"
    assert "1999" in REDACTOR.redact(text)
    monkeypatch.setattr(pseudonyms, "MAX_LOOKS", 0)
    found = REDACTOR.redact(text)
    assert not re.search(r"\d{5}|\d \d", found)
    assert found.startswith("we had <ID_")
    # All texts of a request together have one bound.
    monkeypatch.setattr(pseudonyms, "MAX_LOOKS", 1)
    together = REDACTOR.prepare([])
    assert together("call 555-234-5678").startswith("call <PHONE_")
    assert together("call 555-234-5678").startswith("call <ID_")


def test_long_texts_are_cut_where_nothing_personal_is_cut() -> None:
    filler = "many words and no numbers " * (PIECE_CHARS // 26)
    text = f"{filler}4111 1111 1111 1111 {filler}ann@example.com {filler}"
    for shift in range(0, 60, 7):
        redacted = REDACTOR.redact(text[shift:])
        assert redacted.count("<CARD_") == redacted.count("<EMAIL_") == 1
        assert "1111" not in redacted


def test_texts_of_a_request_are_redacted_before_they_are_cut() -> None:
    call = {"id": "ann@example.com", "type": "function", "function": {
        "name": "dial", "arguments": '{"number": 2125551234, "who": ["ann@example.com"], "n": 3}'}}  # fmt: skip
    request: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "I am ann@example.com"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {
                "role": "tool",
                "tool_call_id": "ann@example.com",
                "content": "x" * 999_990 + " ann@example.com",
            },
        ]
    }
    answer = b'{"choices": [{"index": 0, "message": {"content": "Hello ann@example.com"}}]}'
    texts = make_texts(Endpoint.CHAT, request, answer, prepare=REDACTOR.prepare)
    assert texts is not None
    prompt = msgspec.json.decode(texts.prompt)
    arguments = msgspec.json.decode(prompt[1]["tool_calls"][0]["function"]["arguments"])
    assert arguments["number"].startswith("<PHONE_")
    assert arguments["n"] == 3
    same = find_pseudonym(prompt[0]["content"])
    assert arguments["who"] == [same]
    assert prompt[1]["tool_calls"][0]["id"] == prompt[2]["tool_call_id"] == same
    assert texts.answer == f"Hello {same}"
    assert "ann@" not in texts.prompt


def test_token_ids_are_not_kept_where_texts_are_redacted() -> None:
    request = {"prompt": [1, 2, 3]}
    plain = make_texts(Endpoint.COMPLETIONS, request, None)
    redacted = make_texts(Endpoint.COMPLETIONS, request, None, prepare=REDACTOR.prepare)
    assert plain is not None
    assert "token_ids" in plain.prompt
    assert redacted is not None
    assert "token_ids" not in redacted.prompt


def test_json_stays_json() -> None:
    redacted = redact_json(
        '{"a": {"b": 4111111111111111}, "c": [true, null, 1.5]}', REDACTOR.redact
    )
    value = msgspec.json.decode(redacted)
    assert value["a"]["b"].startswith("<CARD_")
    assert value["c"] == [True, None, 1.5]
    assert redact_json("no json: ann@example.com", REDACTOR.redact).startswith("no json: <EMAIL_")
