"""The models that adapters change: found, and kept as long as adapters need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thrifty.artifacts.artifact import Artifact, NamedVersion
from thrifty.errors import ArtifactError

if TYPE_CHECKING:
    from thrifty.artifacts.store import Store


def load_base(store: Store, adapter: Artifact) -> Artifact:
    """The model that an adapter changes. Raises `ArtifactError` where it is not here."""
    base = adapter.description.base
    assert base is not None
    if not store.has(base.id):
        raise ArtifactError(
            f"the adapter {adapter.id} changes {base.name} ({base.id}), which is not in "
            f"{store.root}; fetch that model again (thrifty pull), or train the adapter anew"
        )
    return store.load(base.id)


def find_base(store: Store, adapter: Artifact) -> tuple[NamedVersion, Artifact]:
    """The same, with the name that it had when the adapter was trained if it still has that. Raises
    `ArtifactError`.
    """
    base, found = adapter.description.base, load_base(store, adapter)
    assert base is not None
    known = [one for one in store.versions() if one.artifact == found.id]
    named = [one for one in known if one.label == base.name] or known[-1:]
    return named[0] if named else NamedVersion("base", 1, found.id, ""), found


def find_base_id(store: Store, artifact_id: str) -> str | None:
    """The id of the model that an artifact changes, if it is an adapter."""
    try:
        base = store.load(artifact_id).description.base
    except ArtifactError:
        return None
    return base.id if base is not None else None


def require_unneeded(store: Store, version: NamedVersion) -> None:
    """Raise `ArtifactError` if adapters need the model, and this is its last name."""
    others = [one for one in store.versions() if one.label != version.label]
    if any(one.artifact == version.artifact for one in others):
        return
    needing = [one.label for one in others if find_base_id(store, one.artifact) == version.artifact]
    if needing:
        raise ArtifactError(
            f"{version.label!r} is the base of the adapters {', '.join(needing)}; remove them first "
            f"(thrifty models rm {needing[0]}), or train what replaces them without --adapter"
        )
