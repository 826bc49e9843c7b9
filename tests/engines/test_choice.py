"""One answer as it grows: its text, where it stops, what it counts, its log-probabilities."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.server.backend import ModelFacts, Output, Ranked
from thrifty.engines.server.choice import Choice, choose_best
from thrifty.engines.server.log_probabilities import TokenDetail
from thrifty.engines.server.request import parse_chat, parse_completion
from thrifty.types import Family

TOKENIZER = make_tokenizer()
END = 256
FACTS = ModelFacts(Family.DECODER, 4096, (END,))


def new_choice(**fields: Any) -> Choice:
    """The choice of a chat request. Its tokens are bytes."""
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return Choice(0, parse_chat(body, TOKENIZER, FACTS), TOKENIZER)


def output(tokens: bytes | list[int], finish: str = "", cached: int = 0) -> Output:
    """New tokens, the log-probability of each the negative of its id."""
    ids = list(tokens)
    return Output(1, ids, [-float(i) for i in ids], finish, cached)


def feed(choice: Choice, *outputs: Output) -> list[str]:
    """The texts that these outputs bring."""
    return [choice.feed(one)[0] for one in outputs]


def tokens_of(details: list[TokenDetail]) -> list[str]:
    """The texts of the tokens that log-probabilities are told of."""
    return [TOKENIZER.token_text(detail.token_id) for detail in details]


# text


def test_text_comes_out_with_its_tokens() -> None:
    choice = new_choice()
    assert feed(choice, output(b"a"), output(b"bc")) == ["a", "bc"]
    assert choice.finish_reason is None
    assert feed(choice, output(b"d", "length")) == ["d"]
    assert (choice.text, choice.tokens, choice.finish_reason) == ("abcd", 4, "length")


def test_character_waits_for_its_last_token() -> None:
    choice = new_choice()
    llama = "é🦙".encode()
    assert feed(choice, *(output([byte]) for byte in llama)) == ["", "é", "", "", "", "🦙"]
    assert choice.tokens == len(llama)


def test_character_that_the_end_cuts_is_left_out_and_counted() -> None:
    choice = new_choice()
    assert feed(choice, output(b"a"), output("🦙".encode()[:2], "length")) == ["a", ""]
    assert (choice.text, choice.tokens, choice.finish_reason) == ("a", 3, "length")


@given(
    text=st.text(max_size=20),
    stops=st.lists(st.text(alphabet="ab é", min_size=1, max_size=3), max_size=2),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    finish=st.sampled_from(["stop", "length"]),
)
def test_pieces_in_which_tokens_come_change_nothing(
    text: str, stops: list[str], sizes: list[int], finish: str
) -> None:
    ids = [*text.encode(), END]
    whole = new_choice(stop=stops, logprobs=True)
    expected = whole.feed(output(ids, finish))
    pieces = new_choice(stop=stops, logprobs=True)
    texts, details = "", []
    for count in cycle(sizes):
        if not ids or pieces.finish_reason is not None:
            break
        ids, taken = ids[count:], ids[:count]
        piece, detail = pieces.feed(output(taken, "" if ids else finish))
        texts += piece
        details += detail
    assert (texts, details) == expected
    for name in ("text", "tokens", "finish_reason", "details"):
        assert getattr(pieces, name) == getattr(whole, name)


# where it stops


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_reason_is_the_backends(finish: str) -> None:
    choice = new_choice()
    feed(choice, output(b"a"), output([], finish))
    assert (choice.text, choice.tokens, choice.finish_reason) == ("a", 1, finish)


def test_stop_string_across_outputs_never_leaks() -> None:
    choice = new_choice(stop=["\n\nUser"])
    pieces = feed(choice, output(b"hi\n"), output(b"\nUs"), output(b"er: x"), output(b"y"))
    assert pieces == ["hi", "", "", ""]
    assert (choice.text, choice.finish_reason) == ("hi", "stop")
    assert choice.tokens == len("hi\n\nUser")


def test_what_only_began_like_a_stop_string_comes_out() -> None:
    choice = new_choice(stop="STOP")
    pieces = feed(choice, output(b"xST"), output(b"AY"), output(b"ST", "length"))
    assert pieces == ["x", "STAY", "ST"]
    assert (choice.text, choice.finish_reason) == ("xSTAYST", "length")


def test_stop_string_in_the_last_tokens_is_the_reason() -> None:
    choice = new_choice(stop="b")
    assert feed(choice, output(b"ab", "length")) == ["a"]
    assert choice.finish_reason == "stop"


def test_stop_string_may_end_in_the_middle_of_a_character_sequence() -> None:
    choice = new_choice(stop="é🦙")
    assert feed(choice, *(output([byte]) for byte in "xé🦙y".encode()))[0] == "x"
    assert (choice.text, choice.finish_reason, choice.tokens) == ("x", "stop", 7)


def test_stop_token_ends_it_and_is_no_text() -> None:
    choice = new_choice(stop_token_ids=[ord(";")], logprobs=True)
    text, details = choice.feed(output(b"a;b"))
    assert text == "a"
    assert tokens_of(details) == ["a"]
    assert (choice.finish_reason, choice.tokens) == ("stop", 2)


def test_stop_token_lets_out_what_a_stop_string_held_back() -> None:
    choice = new_choice(stop_token_ids=[ord(";")], stop="STOP")
    assert feed(choice, output(b"ST"), output(b";")) == ["", "ST"]


def test_nothing_stops_it_before_the_minimum() -> None:
    choice = new_choice(stop="b", stop_token_ids=[ord(";")], min_tokens=4, max_tokens=9)
    assert feed(choice, output(b"ab;"), output(b"a")) == ["ab;", "a"]
    assert choice.finish_reason is None
    assert feed(choice, output(b"b")) == [""]
    assert (choice.finish_reason, choice.tokens) == ("stop", 5)


def test_stop_string_that_was_whole_before_the_minimum_stays_text() -> None:
    """It may be held back as the possible beginning of a longer one."""
    choice = new_choice(stop=["a", "abc"], min_tokens=2, max_tokens=9)
    feed(choice, output(b"xa"), output(b"d"))
    assert choice.finish_reason is None
    assert choice.text == "xad"


def test_stop_string_that_ends_past_the_minimum_counts() -> None:
    choice = new_choice(stop=["abc"], min_tokens=2, max_tokens=9)
    assert feed(choice, output(b"ab"), output(b"c")) == ["", ""]
    assert (choice.finish_reason, choice.text) == ("stop", "")


def test_nothing_is_taken_after_the_end() -> None:
    choice = new_choice(stop="b", logprobs=True)
    feed(choice, output(b"ab"))
    assert choice.feed(output(b"cd", "length", cached=9)) == ("", [])
    assert (choice.text, choice.tokens, choice.cached_tokens) == ("a", 2, 0)
    assert (choice.finish_reason, tokens_of(choice.details)) == ("stop", ["a"])


# what it counts


def test_cached_tokens_are_told_once_and_kept() -> None:
    choice = new_choice()
    feed(choice, output(b"a", cached=64), output(b"b"), output(b"c", "stop"))
    assert choice.cached_tokens == 64


# log-probabilities


def test_every_token_has_its_logprob() -> None:
    choice = new_choice(logprobs=True)
    _, details = choice.feed(output(b"ab"))
    assert details == [TokenDetail(97, -97.0, [], 0), TokenDetail(98, -98.0, [], 1)]
    assert choice.details == details


@pytest.mark.parametrize("together", [True, False])
def test_parts_of_a_character_begin_where_it_begins(together: bool) -> None:
    choice = new_choice(logprobs=True)
    parts = ["é🦙x".encode()] if together else [bytes([byte]) for byte in "é🦙x".encode()]
    feed(choice, *map(output, parts))
    assert [detail.offset for detail in choice.details] == [0, 0, 1, 1, 1, 1, 2]


def test_likeliest_tokens_stay_with_their_token() -> None:
    choice = new_choice(logprobs=True, top_logprobs=2)
    top: list[Ranked] = [[(97, -1.0), (98, -2.0)], [(99, -3.0), (97, -4.0)]]
    feed(choice, Output(1, [97, 98], [-1.0, -5.0], "length", 0, top))
    assert [detail.top for detail in choice.details] == top


@pytest.mark.parametrize("together", [True, False])
def test_end_of_sequence_token_is_counted_and_nothing_else(together: bool) -> None:
    choice = new_choice(logprobs=True)
    if together:
        feed(choice, output([97, END], "stop"))
    else:
        feed(choice, output([97]), output([END], "stop"))
    assert (choice.text, choice.tokens, choice.finish_reason) == ("a", 2, "stop")
    assert tokens_of(choice.details) == ["a"]


def test_completion_tells_of_every_token_that_was_generated() -> None:
    """Clients that score prompts cut off one token for each that was to be generated."""
    body = {"prompt": "hi", "logprobs": 0, "stop_token_ids": [ord(";")]}
    for tokens, finish in (([97, END], "stop"), ([97, ord(";"), 98], "")):
        choice = Choice(0, parse_completion(body, TOKENIZER, FACTS), TOKENIZER)
        feed(choice, output(tokens, finish))
        assert (choice.text, choice.tokens, choice.finish_reason) == ("a", 2, "stop")
        assert [(d.token_id, d.offset) for d in choice.details] == [(97, 0), (tokens[1], 1)]


def test_end_of_sequence_token_that_is_ignored_is_a_token_like_others() -> None:
    choice = new_choice(logprobs=True, ignore_eos=True)
    feed(choice, output([97, END, 98, END], "length"))
    assert (choice.text, choice.tokens, choice.finish_reason) == ("ab", 4, "length")
    assert tokens_of(choice.details) == ["a", "<|end|>", "b", "<|end|>"]


def test_logprobs_come_with_their_text() -> None:
    choice = new_choice(logprobs=True, stop="STOP")
    assert choice.feed(output(b"xS"))[1] == choice.details
    assert tokens_of(choice.details) == ["x"]
    text, details = choice.feed(output(b"Tx"))
    assert (text, tokens_of(details)) == ("STx", ["S", "T", "x"])


def test_logprobs_of_a_stop_string_go_with_it() -> None:
    choice = new_choice(logprobs=True, stop="STOP")
    feed(choice, output(b"xyS"), output(b"TOPz"))
    assert (choice.text, tokens_of(choice.details)) == ("xy", ["x", "y"])


def test_logprobs_are_made_only_for_those_who_ask() -> None:
    choice = new_choice()
    assert choice.feed(output(b"ab", "stop")) == ("ab", [])
    assert choice.details == []


def test_logprobs_that_the_backend_does_not_give_are_left_out() -> None:
    choice = new_choice(logprobs=True)
    assert choice.feed(Output(1, [97], None, "stop")) == ("a", [])


def test_best_choices_are_those_whose_tokens_are_likeliest_on_average() -> None:
    body = {"prompt": ["x", "y"], "n": 2, "best_of": 3}
    request = parse_completion(body, TOKENIZER, FACTS)
    choices = [Choice(index, request, TOKENIZER) for index in range(6)]
    for choice, tokens in zip(choices, [b"cc", b"ab", b"aaaa", b"b", b"a", b"c"], strict=True):
        feed(choice, output(tokens, "length"))
    assert [choice.text for choice in choose_best(choices, request)] == ["aaaa", "ab", "a", "b"]
    assert all(choice.details == [] for choice in choices), "nobody asked for them"
    plain = parse_completion({**body, "best_of": 2}, TOKENIZER, FACTS)
    assert choose_best(choices, plain) == choices
