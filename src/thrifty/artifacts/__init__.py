"""Stored models: their sources, versions, lineage and integrity."""

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
