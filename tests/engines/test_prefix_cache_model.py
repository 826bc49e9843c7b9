"""The account of the prefix cache: what it counts as cached, and that it stays within its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS, PrefixCacheModel

MANY = 1_000_000


def blocks(count: int) -> int:
    """How many blocks hold `count` tokens."""
    return -(-count // BLOCK_TOKENS)


def prompt(*fillings: int, more: int = 0) -> list[int]:
    """A whole block of each of `fillings`, and `more` tokens."""
    return [f for filling in fillings for f in [filling] * BLOCK_TOKENS] + [9] * more


def serve(index: PrefixCacheModel, tokens: list[int], answer: int = 1) -> int:
    """One request from its beginning to its end, as the worker tells of it."""
    cached = index.match(tokens)
    held = index.begin(tokens)
    own = blocks(len(tokens)) - len(held)
    grown = blocks(len(tokens) + answer) - blocks(len(tokens))
    index.grow(grown)
    index.end(held, tokens + [1] * (answer - 1), own + grown)
    return cached


# what is cached


def test_nothing_is_cached_at_first() -> None:
    assert PrefixCacheModel(MANY).match(prompt(1, 2)) == 0
    assert PrefixCacheModel(MANY).match([]) == 0


def test_whole_blocks_of_an_equal_beginning_are_cached() -> None:
    index = PrefixCacheModel(MANY)
    serve(index, prompt(1, 2, 3, more=5))
    assert index.match(prompt(1, 2, 3, more=5)) == 3 * BLOCK_TOKENS
    assert index.match(prompt(1, 2, 4)) == 2 * BLOCK_TOKENS
    assert index.match(prompt(1, 2)[:-1]) == BLOCK_TOKENS
    assert index.match(prompt(2, 3)) == 0


def test_last_token_of_a_prompt_is_never_cached() -> None:
    index = PrefixCacheModel(MANY)
    serve(index, prompt(1, 2))
    assert index.match(prompt(1, 2)) == 2 * BLOCK_TOKENS - 1
    assert index.match(prompt(1)) == BLOCK_TOKENS - 1


def test_equal_blocks_behind_different_ones_are_different() -> None:
    index = PrefixCacheModel(MANY)
    serve(index, prompt(1, 5, more=1))
    assert index.match(prompt(2, 5, more=1)) == 0


def test_order_of_tokens_in_a_block_matters() -> None:
    index = PrefixCacheModel(MANY)
    tokens = list(range(BLOCK_TOKENS))
    serve(index, [*tokens, 1])
    assert index.match([*reversed(tokens), 1]) == 0


def test_answers_are_cached_for_the_next_turn() -> None:
    index = PrefixCacheModel(MANY)
    serve(index, prompt(1), answer=2 * BLOCK_TOKENS + 1)
    assert index.match(prompt(1) + [1] * (3 * BLOCK_TOKENS)) == 3 * BLOCK_TOKENS


def test_blocks_of_a_running_request_are_cached_once_it_shares_them() -> None:
    index = PrefixCacheModel(MANY)
    serve(index, prompt(1, 2))
    held = index.begin(prompt(1, 2, 3))
    assert len(held) == 2
    assert index.match(prompt(1, 2, 4)) == 2 * BLOCK_TOKENS
    index.end(held, [], 1)
    assert index.match(prompt(1, 2, 4)) == 2 * BLOCK_TOKENS


def test_blocks_of_a_running_request_are_cached_once_its_prompt_is_computed() -> None:
    index = PrefixCacheModel(8)
    held = index.begin(prompt(1, 2, more=1))
    assert index.match(prompt(1, 2, 3)) == 0
    assert index.share(prompt(1, 2, more=1), held) == 2
    assert index.match(prompt(1, 2, 3)) == 2 * BLOCK_TOKENS
    assert index.free_blocks == 5
    # Who computed the same at the same time keeps blocks of its own.
    assert index.has_room(prompt(1, 2, 3), 4)
    assert not index.has_room(prompt(1, 2, 3), 5)
    twin = index.begin(prompt(1, 2))
    assert len(twin) == 2
    index.end(held, prompt(1, 2), 1)
    index.end(twin, prompt(1, 2), 0)
    assert index.free_blocks == 8
    assert index.match(prompt(1, 2, 3)) == 2 * BLOCK_TOKENS


def test_what_two_computed_at_once_is_counted_twice() -> None:
    index = PrefixCacheModel(8)
    first, second = index.begin(prompt(1)), index.begin(prompt(1))
    assert index.share(prompt(1), first) == 1
    assert index.share(prompt(1), second) == 0
    assert index.free_blocks == 6
    index.end(second, prompt(1), 1)
    index.end(first, prompt(1), 0)
    assert index.free_blocks == 8


def test_what_a_cancelled_request_never_computed_is_not_cached() -> None:
    index = PrefixCacheModel(MANY)
    held = index.begin(prompt(1, 2))
    index.end(held, [], 2)
    assert index.match(prompt(1, 2)) == 0


# what is given up


def test_least_recently_used_is_given_up_first() -> None:
    index = PrefixCacheModel(4)
    for filling in (1, 2, 3):
        serve(index, prompt(filling))
    serve(index, prompt(1))
    serve(index, prompt(4))
    serve(index, prompt(5))
    assert [index.match(prompt(filling, more=1)) // BLOCK_TOKENS for filling in range(1, 6)] == [
        1, 0, 0, 1, 1,
    ]  # fmt: skip


def test_equal_requests_at_once_use_their_blocks_until_the_last_ends() -> None:
    index = PrefixCacheModel(5)
    held = [index.begin(prompt(1)) for _ in range(2)]
    index.end(held[0], prompt(1), 1)
    serve(index, prompt(2))
    index.end(held[1], prompt(1), 1)
    serve(index, prompt(3, 4, 5))
    assert index.match(prompt(1, more=1)) == BLOCK_TOKENS
    assert index.match(prompt(2, more=1)) == 0


def test_blocks_in_use_are_never_given_up() -> None:
    index = PrefixCacheModel(4)
    serve(index, prompt(1, 2))
    held = index.begin(prompt(1, 2))
    for filling in range(10, 30):
        serve(index, prompt(filling))
    assert index.match(prompt(1, 2, more=1)) == 2 * BLOCK_TOKENS
    index.end(held, prompt(1, 2), 0)
    assert index.match(prompt(1, 2, more=1)) == 2 * BLOCK_TOKENS


def test_growing_answers_take_the_room_of_what_nobody_uses() -> None:
    index = PrefixCacheModel(4)
    serve(index, prompt(1))
    serve(index, prompt(2))
    held = index.begin(prompt(3))
    index.grow(2)
    assert index.match(prompt(1, more=1)) == 0
    assert index.match(prompt(2, more=1)) == BLOCK_TOKENS
    index.grow(1)
    assert index.match(prompt(2, more=1)) == 0
    index.end(held, prompt(3, 3, 3, 3), 4)
    assert index.match(prompt(3, 3, 3, 3, more=1)) == 4 * BLOCK_TOKENS


@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 40), st.integers(1, 80)),
        max_size=30,
    ),
    capacity=st.integers(0, 8),
)
def test_memory_is_bounded_whatever_is_served(
    requests: list[tuple[list[int], int, int]], capacity: int
) -> None:
    index = PrefixCacheModel(capacity)
    for fillings, more, answer in requests:
        serve(index, prompt(*fillings, more=more) or [1], answer)
        assert len(index._unused) <= capacity
    assert not index._used
    assert index._running_blocks == 0


def test_memory_is_bounded_over_many_different_prompts() -> None:
    index = PrefixCacheModel(50)
    for number in range(5_000):
        serve(index, [number] * (2 * BLOCK_TOKENS))
    # While it runs, a request's third block takes the room of one that nobody uses.
    assert len(index._unused) == 49


def test_blocks_that_are_not_full_take_room_and_are_never_cached() -> None:
    index = PrefixCacheModel(4)
    serve(index, prompt(1, more=5))
    assert index.match(prompt(1, more=6)) == BLOCK_TOKENS
    serve(index, prompt(2, more=5))
    assert index.match(prompt(1, more=6)) == BLOCK_TOKENS
    serve(index, prompt(3))
    assert index.match(prompt(1, more=6)) == 0
    assert index.match(prompt(2, more=6)) == BLOCK_TOKENS


@pytest.mark.parametrize("capacity", [16, MANY])
def test_room_makes_the_only_difference_between_small_and_large(capacity: int) -> None:
    index = PrefixCacheModel(capacity)
    turns = [serve(index, [n % 7] * (BLOCK_TOKENS + 1)) for n in range(70)]
    assert turns == [0] * 7 + [BLOCK_TOKENS] * 63


@dataclass
class Serving:
    """A request under way, and what the test knows of it."""

    tokens: list[int]
    held: list[int]
    own: int
    generated: list[int] = field(default_factory=list)


class Requests(RuleBasedStateMachine):
    """Requests that begin, grow, end and are cancelled in any order, in a pool that fills up."""

    CAPACITY = 12

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixCacheModel(self.CAPACITY)
        self.serving: list[Serving] = []
        self.computed: set[tuple[int, ...]] = set()

    @rule(fillings=st.lists(st.integers(0, 2), min_size=1, max_size=4), more=st.integers(0, 33))
    def begin(self, fillings: list[int], more: int) -> None:
        tokens = prompt(*fillings, more=more)
        cached = self.index.match(tokens)
        assert 0 <= cached < len(tokens)
        # Nothing counts as cached that was not computed by a request before.
        whole = blocks(cached) * BLOCK_TOKENS
        assert not whole or tuple(tokens[:whole]) in self.computed
        held = self.index.begin(tokens)
        assert len(held) == blocks(cached)
        self.serving.append(Serving(tokens, held, blocks(len(tokens)) - len(held)))

    @precondition(lambda self: self.serving)
    @rule(which=st.integers(0, 9), count=st.integers(1, 40))
    def grow(self, which: int, count: int) -> None:
        one = self.serving[which % len(self.serving)]
        before = blocks(len(one.tokens) + len(one.generated))
        one.generated += [7] * count
        grown = blocks(len(one.tokens) + len(one.generated)) - before
        one.own += grown
        self.index.grow(grown)

    @precondition(lambda self: self.serving)
    @rule(which=st.integers(0, 9))
    def end(self, which: int) -> None:
        one = self.serving.pop(which % len(self.serving))
        computed = one.tokens + one.generated[:-1] if one.generated else []
        self.index.end(one.held, computed, one.own)
        for end in range(BLOCK_TOKENS, len(computed) + 1, BLOCK_TOKENS):
            self.computed.add(tuple(computed[:end]))

    @invariant()
    def account_is_right(self) -> None:
        index = self.index
        assert index._running_blocks == sum(one.own for one in self.serving)
        held = {checksum for one in self.serving for checksum in one.held}
        assert set(index._used) == held
        assert not held & set(index._unused)
        taken = len(index._used) + index._running_blocks
        assert len(index._unused) <= max(0, self.CAPACITY - taken)


TestRequests = Requests.TestCase
