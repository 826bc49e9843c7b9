"""Models as things: where they come from, versions, lineage, integrity."""

from thrifty.artifacts.artifact import (
    Artifact,
    Description,
    FileEntry,
    Lineage,
    NamedVersion,
    Parent,
)
from thrifty.artifacts.store import Store

__all__ = ["Artifact", "Description", "FileEntry", "Lineage", "NamedVersion", "Parent", "Store"]
