"""What a stored model was made from."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.artifacts.artifact import NamedVersion
from thrifty.artifacts.store import Store


def walk_lineage(store: Store, version: NamedVersion) -> Iterator[NamedVersion]:
    """Yield a version and then those that it was made from, nearest first, as far as they are
    stored. Of several parents, the first counts.
    """
    known = store.versions()
    seen: set[str] = set()
    current: NamedVersion | None = version
    while current is not None and current.artifact not in seen:
        seen.add(current.artifact)
        yield current
        if not current.lineage.parents:
            return
        parent = current.lineage.parents[0]
        found = [one for one in known if one.artifact == parent.id]
        current = next((one for one in found if one.label == parent.name), None)
        current = current or (found[-1] if found else None)
