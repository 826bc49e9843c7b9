"""Random sentences of a grammar in the notation that engines read: answers without an engine."""

from __future__ import annotations

import math
import random
import re

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|\[((?:[^\]\\]|\\.)*)\]|(r\d+|root)|(\|)')
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)

Symbol = str | list[tuple[int, int]] | tuple[str]
"""A literal, a class of characters, or the name of a rule."""


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else m[3], text)


def _read_class(text: str) -> list[tuple[int, int]]:
    ends = []
    for part in re.finditer(
        r"(\\.[0-9a-f]{4,8}|\\.|.)(?:-(\\.[0-9a-f]{4,8}|\\.|.))?", text, re.DOTALL
    ):
        first = ord(_plain(part[1]))
        ends.append((first, ord(_plain(part[2])) if part[2] else first))
    return ends


class Sentences:
    """Writes sentences of one grammar (without free text)."""

    def __init__(self, grammar: str) -> None:
        self._rules: dict[str, list[list[Symbol]]] = {}
        for line in grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            alternatives: list[list[Symbol]] = [[]]
            for match in _TOKEN.finditer(body.partition(" (=")[0] if " (=r" in body else body):
                literal, characters, rule, bar = match.groups()
                if bar:
                    alternatives.append([])
                elif rule:
                    alternatives[-1].append((rule,))
                elif characters is not None:
                    alternatives[-1].append(_read_class(characters))
                else:
                    alternatives[-1].append(_plain(literal))
            self._rules[name] = alternatives
        self._depths = self._find_depths()

    def _find_depths(self) -> dict[str, float]:
        """How deep a rule goes at least."""
        depths = dict.fromkeys(self._rules, math.inf)
        changed = True
        while changed:
            changed = False
            for name, alternatives in self._rules.items():
                depth = 1 + min(
                    max((depths[s[0]] for s in a if isinstance(s, tuple)), default=0)
                    for a in alternatives
                )
                if depth < depths[name]:
                    depths[name], changed = depth, True
        assert not any(map(math.isinf, depths.values())), "a rule never ends"
        return depths

    def write(self, rng: random.Random, budget: int = 400) -> str:
        """One sentence. Beyond `budget` symbols it takes the shortest way to its end."""
        parts: list[str] = []
        stack: list[Symbol] = [("root",)]
        while stack:
            symbol = stack.pop()
            if isinstance(symbol, str):
                parts.append(symbol)
            elif isinstance(symbol, list):
                low, high = rng.choice(symbol)
                # Seldom one far away in a large class.
                parts.append(
                    chr(rng.randint(low, high if rng.random() < 0.2 else min(high, low + 90)))
                )
            else:
                alternatives = self._rules[symbol[0]]
                budget -= 1
                if budget < 0:
                    alternatives = [min(alternatives, key=self._depth_of)]
                stack += reversed(rng.choice(alternatives))
        return "".join(parts)

    def _depth_of(self, alternative: list[Symbol]) -> float:
        return max((self._depths[s[0]] for s in alternative if isinstance(s, tuple)), default=0)
