"""A remote under test, and the means to damage it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from thrifty.artifacts.remotes import open_remote, parse_root
from thrifty.artifacts.remotes.base import Remote


class Place(Protocol):
    """An empty remote."""

    url: str

    @property
    def atomic(self) -> bool:
        """Whether it writes manifests only if they are absent."""
        ...

    def reference(self, name: str, number: int | None = None) -> str:
        """What to pull a model by."""
        ...

    def damage(self, digest: str, content: bytes) -> None:
        """Put other bytes under a digest, behind the remote's back."""
        ...


class FolderPlace:
    """A folder."""

    atomic = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def reference(self, name: str, number: int | None = None) -> str:
        return f"{self.url}/{name}" + (f"@v{number}" if number else "")

    def damage(self, digest: str, content: bytes) -> None:
        (self.root / "blobs" / "sha256" / digest).write_bytes(content)


def open_place(place: Place) -> Remote:
    """The remote itself."""
    return open_remote(parse_root(place.url))
