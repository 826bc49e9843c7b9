"""Deterministic automata over characters: sets of texts that can be joined, cut and searched.

An automaton's states are numbered from 0, where it begins. It is trimmed: from each state, some
accepted text can be reached; one that accepts nothing has no states.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from thrifty.engines.server.grammar.rules import GrammarTooLarge, Ranges

MAX_STATES = 3_000
MAX_EDGES = 60_000
_MAX_MINIMIZED = 300

ANY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
"""Every character; surrogates are none."""

Edge = tuple[int, int, int]
"""The first and last code point, and where they lead."""

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class Automaton:
    """A set of texts."""

    edges: tuple[tuple[Edge, ...], ...]
    accepting: tuple[bool, ...]

    @property
    def empty(self) -> bool:
        """Whether it accepts nothing."""
        return not self.edges

    def accepts(self, text: str) -> bool:
        """Whether `text` is in the set."""
        if self.empty:
            return False
        state = 0
        for character in text:
            code = ord(character)
            for low, high, target in self.edges[state]:
                if low <= code <= high:
                    state = target
                    break
            else:
                return False
        return self.accepting[state]

    def find_lengths(self) -> tuple[int, int | None]:
        """The lengths of the shortest and the longest text; None where there is no longest."""
        shortest = 0
        frontier = {0}
        while not any(self.accepting[state] for state in frontier):
            frontier = {target for state in frontier for _, _, target in self.edges[state]}
            shortest += 1
        longest = 0
        frontier = {0}
        for length in range(len(self.edges) + 1):
            if any(self.accepting[state] for state in frontier):
                longest = length
            frontier = {target for state in frontier for _, _, target in self.edges[state]}
            if not frontier:
                return shortest, longest
        return shortest, None


def explore(
    start: State, step: Callable[[State], tuple[bool, Iterable[tuple[int, int, State]]]]
) -> Automaton:
    """The automaton of a function that says of a state whether it accepts, and where its characters
    lead. Edges of one state must not overlap. Raises `GrammarTooLarge`.
    """
    numbers: dict[State, int] = {start: 0}
    waiting = [start]
    edges: list[tuple[Edge, ...]] = []
    accepting: list[bool] = []
    count = 0
    for state in waiting:
        accepts, outgoing = step(state)
        found = []
        for low, high, target in outgoing:
            number = numbers.get(target)
            if number is None:
                number = numbers[target] = len(waiting)
                waiting.append(target)
            found.append((low, high, number))
        count += len(found)
        if len(waiting) > MAX_STATES or count > MAX_EDGES:
            raise GrammarTooLarge(f"a pattern or range needs more than {MAX_STATES} states")
        edges.append(tuple(found))
        accepting.append(accepts)
    return _minimize(_trim(edges, accepting))


def _trim(edges: Sequence[Sequence[Edge]], accepting: Sequence[bool]) -> Automaton:
    sources: dict[int, list[int]] = {}
    for state, outgoing in enumerate(edges):
        for _, _, target in outgoing:
            sources.setdefault(target, []).append(state)
    alive = {state for state, accepts in enumerate(accepting) if accepts}
    stack = list(alive)
    while stack:
        for source in sources.get(stack.pop(), ()):
            if source not in alive:
                alive.add(source)
                stack.append(source)
    if 0 not in alive:
        return Automaton((), ())
    numbers = {state: number for number, state in enumerate(sorted(alive))}
    return Automaton(
        tuple(
            _join_edges((low, high, numbers[target]) for low, high, target in edges[s] if target in alive)
            for s in sorted(alive)
        ),
        tuple(accepting[s] for s in sorted(alive)),
    )  # fmt: skip


def _join_edges(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    joined: list[Edge] = []
    for low, high, target in sorted(edges):
        if joined and joined[-1][2] == target and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high, target)
        else:
            joined.append((low, high, target))
    return tuple(joined)


def _minimize(automaton: Automaton) -> Automaton:
    """The same set with as few states as possible (Moore's refinement of partitions, whose time grows
    with the square of the states: an automaton of many stays as it is).
    """
    if len(automaton.edges) > _MAX_MINIMIZED:
        return automaton
    classes = [int(accepts) for accepts in automaton.accepting]
    count = len(set(classes))
    while True:
        signatures: dict[Hashable, int] = {}
        refined = []
        for state, outgoing in enumerate(automaton.edges):
            signature = (
                classes[state],
                _join_edges((low, high, classes[target]) for low, high, target in outgoing),
            )
            refined.append(signatures.setdefault(signature, len(signatures)))
        classes = refined
        if len(signatures) == count:
            break
        count = len(signatures)
    chosen: dict[int, int] = {}
    for state, number in enumerate(classes):
        chosen.setdefault(number, state)
    return Automaton(
        tuple(
            _join_edges((low, high, classes[target]) for low, high, target in automaton.edges[s])
            for s in chosen.values()
        ),
        tuple(automaton.accepting[s] for s in chosen.values()),
    )


def _step_both(
    first: Sequence[Edge], second: Sequence[Edge]
) -> Iterable[tuple[int, int, tuple[int, int]]]:
    """Where two states lead together: both lists are in order."""
    i = j = 0
    while i < len(first) and j < len(second):
        low = max(first[i][0], second[j][0])
        high = min(first[i][1], second[j][1])
        if low <= high:
            yield low, high, (first[i][2], second[j][2])
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1


def intersect(first: Automaton, second: Automaton) -> Automaton:
    """The texts that both accept."""
    if first.empty or second.empty:
        return Automaton((), ())
    return explore(
        (0, 0),
        lambda pair: (
            first.accepting[pair[0]] and second.accepting[pair[1]],
            _step_both(first.edges[pair[0]], second.edges[pair[1]]),
        ),
    )


def complement(automaton: Automaton) -> Automaton:
    """All other texts."""
    sink = -1

    def step(state: int) -> tuple[bool, list[Edge]]:
        if state == sink or automaton.empty:
            return True, [(low, high, sink) for low, high in ANY]
        outgoing = list(automaton.edges[state])
        rest = [
            (low, high, sink)
            for low, high in subtract(ANY, [(low, high) for low, high, _ in outgoing])
        ]
        return not automaton.accepting[state], outgoing + rest

    return explore(0, step)


def limit_length(automaton: Automaton, low: int, high: int | None) -> Automaton:
    """The texts with `low` to `high` characters."""
    if automaton.empty:
        return automaton
    shortest, longest = automaton.find_lengths()
    cap = low if high is None else high
    if shortest >= low and (high is None or (longest is not None and longest <= high)):
        return automaton

    def step(state: tuple[int, int]) -> tuple[bool, list[tuple[int, int, tuple[int, int]]]]:
        number, length = state
        if high is not None and length == high:
            return automaton.accepting[number] and length >= low, []
        following = min(length + 1, cap)
        return (
            automaton.accepting[number] and length >= low,
            [(a, b, (target, following)) for a, b, target in automaton.edges[number]],
        )

    return explore((0, 0), step)


def only(texts: Iterable[str]) -> Automaton:
    """Exactly these texts."""
    tree: dict[str, dict[str, object]] = {}
    root = ""
    ends = set(texts)
    for text in ends:
        for length in range(len(text)):
            tree.setdefault(text[:length], {})[text[length]] = text[: length + 1]

    def step(prefix: str) -> tuple[bool, list[tuple[int, int, str]]]:
        children = sorted(tree.get(prefix, {}))
        return prefix in ends, [(ord(c), ord(c), prefix + c) for c in children]

    return explore(root, step)


def subtract(ranges: Ranges, others: Iterable[tuple[int, int]]) -> Ranges:
    """The characters of `ranges` that are not in `others`."""
    rest = list(ranges)
    for low, high in others:
        cut = []
        for begin, end in rest:
            if high < begin or end < low:
                cut.append((begin, end))
                continue
            if begin < low:
                cut.append((begin, low - 1))
            if high < end:
                cut.append((high + 1, end))
        rest = cut
    return tuple(rest)


def merge(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order and apart from each other."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)
