"""Arrays and objects, as rules.

Properties come in the order of their schema; those that need not be there may be skipped. An object
gets properties of other names only if its schema declares none, or speaks of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from thrifty.engines.server.grammar.alternatives import Way, find_ways
from thrifty.engines.server.grammar.automata import complement
from thrifty.engines.server.grammar.constants import accepts
from thrifty.engines.server.grammar.patterns import find_texts
from thrifty.engines.server.grammar.rules import EMPTY, Alternative, Ref, Rules
from thrifty.engines.server.grammar.schema import Node, is_nothing
from thrifty.engines.server.grammar.strings import Texts, between_values, write_name
from thrifty.engines.server.grammar.texts import find_texts_of

WriteValue = Callable[[Iterable[Node]], Ref]

_MAX_INLINE = 60
"""Symbols of an alternative from which its end becomes a rule of its own."""


def write_array(rules: Rules, way: Way, write_value: WriteValue) -> list[Alternative]:
    """The arrays that satisfy a way."""
    low, high = way.strictest("minItems", "maxItems")
    for node, unique in way.all("uniqueItems"):
        if unique and (high is None or high > 1):
            raise node.refuse("uniqueItems", "cannot be enforced")
    for node, _ in way.all("contains"):
        if node.schema.get("minContains", 1) or "maxContains" in node.schema:
            raise node.refuse("contains", "cannot be enforced")
    first = max((len(items) for _, items in way.all("prefixItems")), default=0)
    if first and not way.all("items"):
        # Nobody says what comes behind: nothing does, unless so many are asked for.
        high = max(first, low) if high is None else min(high, max(first, low))
    space = between_values(rules)
    whole: list[Alternative] = [("[", space, "]")] if low == 0 else []
    if high is not None and high < max(low, 1):
        return whole if high >= low else []
    places = [write_value(_find_items(way, place)) for place in range(first)]
    item = write_value(_find_items(way, first))
    others = rules.keyed(("further", item), lambda: [(",", space, item)])
    start = max(first, 1)
    if high is not None and high < start:
        tail: Alternative = EMPTY
        places = places[:high]
    else:
        tail = rules.repeat(others, max(0, low - start), None if high is None else high - start)
    for place in range(len(places) - 1, 0, -1):
        ends = [EMPTY] if place >= low else []
        tail = (rules.add((",", space, places[place], *tail), *ends),)
    head = places[0] if places else write_value(_find_items(way, 0))
    return [*whole, ("[", space, head, *tail, space, "]")]


def _find_items(way: Way, place: int) -> list[Node]:
    found = []
    for node in way.nodes:
        first = node.schema.get("prefixItems", ())
        if place < len(first):
            found.append(way.document.children(node, "prefixItems")[place])
        elif "items" in node.schema:
            found.append(way.document.inner(node, "items"))
    return found


def write_object(rules: Rules, way: Way, write_value: WriteValue) -> list[Alternative]:
    """The objects that satisfy a way."""
    low, high = way.strictest("minProperties", "maxProperties")
    declared = [name for name in way.find_declared() if _may_be_named(way, name)]
    needed = frozenset(way.needed)
    if not needed <= frozenset(declared):
        return []
    space = between_values(rules)
    pairs = _write_pairs(rules, way, write_value) if way.is_open else []
    if pairs and low > len(declared) + 1:
        node = next(node for node, value in way.all("minProperties") if value == low)
        raise node.refuse("minProperties", "above 1 can be enforced for declared properties alone")
    pair = rules.add(*pairs) if pairs else None
    counts = low > len(needed) or (high is not None and (pair is not None or high < len(declared)))

    # From the last property to the first: what may follow, by how many there are already.
    following: dict[int, Alternative | None] = {}
    for count in range(len(declared) + 1 if counts else 2):
        following[count] = _end_object(rules, space, pair, count, counts, low, high)
    for place in range(len(declared) - 1, -1, -1):
        name = declared[place]
        entry = (_write_key(name), space, write_value(way.find_child(name)))
        earlier: dict[int, Alternative | None] = {}
        for count in range(place + 1 if counts else min(place + 1, 2)):
            tail = following[count + 1 if counts else 1]
            given = None if tail is None else ((*((",", space) if count else EMPTY), *entry, *tail))
            skipped = None if name in needed else following[count]
            earlier[count] = _choose(rules, given, skipped)
        following = earlier
    content = following[0]
    return [] if content is None else [("{", space, *content)]


def _choose(
    rules: Rules, given: Alternative | None, skipped: Alternative | None
) -> Alternative | None:
    if given is not None and skipped is not None:
        return (rules.add(given, skipped),)
    only = given if skipped is None else skipped
    return (rules.add(only),) if only is not None and len(only) > _MAX_INLINE else only


def _end_object(
    rules: Rules,
    space: Ref,
    pair: Ref | None,
    count: int,
    counts: bool,
    low: int,
    high: int | None,
) -> Alternative | None:
    """What ends an object behind so many properties; None if it may not end there."""
    missing = max(0, low - count) if counts else 0
    left = None if high is None or not counts else high - count
    if left is not None and left < missing:
        return None
    close: Alternative = (space, "}") if count else ("}",)
    if pair is None or left == 0:
        return None if missing else close
    if missing > 1:  # names that are made up may be equal
        return None
    more = rules.keyed(("more", pair), lambda: [(",", space, pair)])
    if count:
        return (*rules.repeat(more, missing, left), *close)
    others = rules.repeat(more, 0, None if left is None else left - 1)
    filled = (pair, *others, space, "}")
    return filled if missing else (rules.add(close, filled),)


def _write_key(name: str) -> str:
    return f"{json.dumps(name, ensure_ascii=False)}:"


def _may_be_named(way: Way, name: str) -> bool:
    return all(
        accepts(way.document, way.document.inner(node, "propertyNames"), name)
        for node, _ in way.all("propertyNames")
    )


def _write_pairs(rules: Rules, way: Way, write_value: WriteValue) -> list[Alternative]:
    """Properties that no schema declares, by the patterns of their names."""
    document, space = way.document, between_values(rules)
    taken = {name for _, given in way.all("properties") for name in given}
    taken |= {*way.needed, *way.absent}
    namings = find_ways(
        document, [document.inner(node, "propertyNames") for node, _ in way.all("propertyNames")]
    )
    patterns = dict.fromkeys(p for _, given in way.all("patternProperties") for p in given)
    pairs: list[Alternative] = []
    for naming in namings:
        if naming.listed is not None:
            for name in [n for n in naming.listed if isinstance(n, str) and n not in taken]:
                found = way.find_child(name)
                if not any(map(is_nothing, found)):
                    pairs.append((_write_key(name), space, write_value(found)))
            continue
        if "string" not in naming.types:
            continue
        texts = find_texts_of(naming)
        for pattern in [*patterns, None]:
            values = _find_values(way, pattern)
            if values is None:
                continue
            cuts = [
                find_texts(p) if p == pattern else complement(find_texts(p, wide=True))
                for p in patterns
            ]
            names = Texts(texts.low, texts.high, (*texts.automata, *cuts), texts.excluded)
            pairs.append((write_name(rules, names, taken), ":", space, write_value(values)))
    return pairs


def _find_values(way: Way, pattern: str | None) -> Sequence[Node] | None:
    """The schemas for properties whose names match this pattern and no other; None if there may be
    none of them.
    """
    document = way.document
    if pattern is None and way.all("patternProperties") and not way.all("additionalProperties"):
        return None
    found = []
    for node in way.nodes:
        if pattern is not None and pattern in node.schema.get("patternProperties", {}):
            found.append(document.inner(node, "patternProperties", pattern))
        elif "additionalProperties" in node.schema:
            found.append(document.inner(node, "additionalProperties"))
    return None if any(map(is_nothing, found)) else found
