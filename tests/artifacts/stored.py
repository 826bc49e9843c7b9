"""A store with small models."""

from __future__ import annotations

from pathlib import Path

from tests.artifacts.models import write_model
from thrifty.artifacts import Artifact, Lineage, NamedVersion, Store

SOURCE = Lineage(requested="pypi:tiny", source="pypi:tiny==1")


def put(
    store: Store, name: str = "tiny", filling: int = 0, lineage: Lineage = SOURCE, size: int = 64
) -> tuple[NamedVersion, Artifact]:
    """Add a model as sources do: from a stage of the store."""
    with store.stage(f"{name} {filling}") as folder:
        return store.add(write_model(folder / "model", filling, size), name, lineage)


def blobs(store: Store) -> set[str]:
    """The checksums of all blobs."""
    return {path.name for path in (store.root / "blobs").iterdir()}


def artifacts(store: Store) -> set[str]:
    """The names in the folder of artifacts."""
    return {path.name for path in (store.root / "artifacts").iterdir()}


def damage(path: Path, data: bytes) -> None:
    """Overwrite a stored file in place, as a failing disk would."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o444)
