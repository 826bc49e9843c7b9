"""What a schema asks of a string."""

from __future__ import annotations

from thrifty.engines.server.grammar.alternatives import Way
from thrifty.engines.server.grammar.formats import REFUSED, find_format
from thrifty.engines.server.grammar.patterns import find_texts
from thrifty.engines.server.grammar.strings import Texts


def find_texts_of(way: Way) -> Texts:
    """The strings that satisfy a way. Raises `SchemaRefused`."""
    low, high = way.strictest("minLength", "maxLength")
    automata = [find_texts(pattern) for _, pattern in way.all("pattern")]
    for node, name in way.all("format"):
        if name in REFUSED:
            raise node.refuse("format", f"{name!r} cannot be enforced")
        found = find_format(name)
        if found is not None:
            automata.append(found)
    excluded = {v for _, values in way.find_excluded() for v in values if isinstance(v, str)}
    return Texts(low, high, tuple(dict.fromkeys(automata)), frozenset(excluded))
