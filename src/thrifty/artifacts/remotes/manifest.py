"""The manifest of a model in a remote: its files, where it came from, what was measured of it.

What is read from a remote may hold anything, so everything is checked before it is used.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

from thrifty.artifacts.artifact import (
    Artifact,
    FileEntry,
    Lineage,
    NamedVersion,
    compute_id,
    is_id,
    parse_label,
)
from thrifty.artifacts.measurements import Measurement
from thrifty.errors import ArtifactError, IntegrityError

SCHEMA = 1
MAX_FILES = 100_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 2**50
_RESERVED = "artifact.json"
"""The store's own file in each model's folder."""


class Manifest(msgspec.Struct, frozen=True):
    """A model in a remote."""

    version: NamedVersion
    artifact: Artifact
    measurements: tuple[Measurement, ...] = ()
    """Those from before it was pushed, under their conditions."""
    features: tuple[str, ...] = ()
    """For prepared models: the processor features that it was prepared with."""
    schema: int = SCHEMA

    @property
    def blobs(self) -> dict[str, FileEntry]:
        """The files by their digest, each once."""
        return {entry.sha256: entry for entry in self.artifact.files}


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as it is written to remotes."""
    return msgspec.json.format(msgspec.json.encode(manifest))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """A manifest as read from a remote. Raises `IntegrityError`."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{where} is not a model's manifest: {error}") from None
    if manifest.schema != SCHEMA:
        raise IntegrityError(
            f"{where} has the schema {manifest.schema}, and this Thrifty reads {SCHEMA}; update it"
        )
    _check_files(manifest.artifact.files, where)
    base = manifest.artifact.description.base
    if base is not None and not is_id(base.id):
        raise IntegrityError(f"{where} is refused: its base has the id {base.id!r:.80}")
    if compute_id(manifest.artifact.files) != manifest.artifact.id:
        raise IntegrityError(f"{where} is damaged: its id does not match its files; push it again")
    if manifest.version.artifact != manifest.artifact.id or manifest.version.version < 1:
        raise IntegrityError(f"{where} is damaged: it names another model; push it again")
    try:
        parse_label(manifest.version.label)
    except ArtifactError as error:
        raise IntegrityError(f"{where} is damaged: {error}") from None
    return manifest


def make_manifest(
    version: NamedVersion,
    artifact: Artifact,
    measurements: tuple[Measurement, ...],
    *,
    name: str | None = None,
    number: int | None = None,
    features: frozenset[str] = frozenset(),
) -> Manifest:
    """The manifest of a stored version, under another name or number if these are given."""
    version = msgspec.structs.replace(
        version, name=name or version.name, version=number or version.version,
        lineage=_without_places(version.lineage),
    )  # fmt: skip
    return Manifest(version, artifact, measurements, tuple(sorted(features)))


def _without_places(lineage: Lineage) -> Lineage:
    """The lineage without paths, which mean nothing elsewhere and tell of this machine."""
    requested, source = lineage.requested, lineage.source
    return msgspec.structs.replace(
        lineage,
        requested=None if (requested or "").startswith("file:") else requested,
        source=None if (source or "").startswith("file:") else source,
    )


def _check_files(files: tuple[FileEntry, ...], where: str) -> None:
    paths = {entry.path for entry in files}
    if not 0 < len(files) <= MAX_FILES or len(paths) != len(files):
        raise IntegrityError(f"{where} is damaged: it lists no files, too many, or one twice")
    sizes: dict[str, int] = {}
    for entry in files:
        path = PurePosixPath(entry.path)
        fine = (
            str(path) == entry.path and not path.is_absolute() and ".." not in path.parts
            and "\\" not in entry.path and "\0" not in entry.path and entry.path not in ("", ".", _RESERVED)
            and all(len(part) < 256 for part in path.parts) and len(path.parts) < 32
        )  # fmt: skip
        if not fine:
            raise IntegrityError(
                f"{where} is refused: it has a file with the path {entry.path!r:.80}"
            )
        same = sizes.setdefault(entry.sha256, entry.size) == entry.size
        if not _DIGEST.fullmatch(entry.sha256) or not 0 <= entry.size < _MAX_BYTES or not same:
            raise IntegrityError(
                f"{where} is damaged: {entry.path!r:.80} has no valid checksum or size"
            )
    for name in paths:
        if any(str(parent) in paths for parent in PurePosixPath(name).parents):
            raise IntegrityError(f"{where} is damaged: {name!r:.80} is below another file")
