"""What engines prepare of a model, shared through the model's remote.

A prepared model is kept beside the model that it was made from, under a key over the recipe (which
names the engine), the processor's features and the version of the engine's package: machines that
prepare alike share it, others prepare their own. A remote that is away, or that refuses to be
written, costs nothing but the sharing: the model is prepared here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts.artifact import Artifact, NamedVersion
from thrifty.artifacts.remotes.base import Remote
from thrifty.artifacts.remotes.manifest import encode_manifest, make_manifest, parse_manifest
from thrifty.artifacts.remotes.open import open_remote
from thrifty.artifacts.remotes.pull import bring_in
from thrifty.artifacts.remotes.push import send_blobs
from thrifty.artifacts.remotes.reference import is_reference, parse_reference
from thrifty.artifacts.remotes.retries import insist
from thrifty.artifacts.store import Store
from thrifty.errors import ArtifactError, IntegrityError
from thrifty.types import OnProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessorKind:
    """What a prepared model depends on, besides the model and the recipe."""

    architecture: str
    features: frozenset[str]
    engine_version: str

    def make_key(self, recipe: Mapping[str, Any]) -> str:
        """The key of what a recipe gives on such a processor: 32 hexadecimal digits."""
        whole = {
            "recipe": recipe, "architecture": self.architecture, "features": sorted(self.features),
            "engine_version": self.engine_version,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


class BackedStore(Store):
    """A store that looks into a remote for what was made of a model, before it is made again."""

    def __init__(
        self, root: Path, source: str, kind: ProcessorKind, on_progress: OnProgress
    ) -> None:
        """`source` is the URL that the model was pulled from."""
        super().__init__(root)
        self._source = source
        self._kind = kind
        self._on_progress = on_progress
        self.pulled: set[str] = set()
        """The artifacts that came from the remote."""

    def find_made(
        self, parent_id: str, recipe: dict[str, Any]
    ) -> tuple[NamedVersion, Artifact] | None:
        """As `Store.find_made`; what only the remote has is pulled."""
        made = super().find_made(parent_id, recipe)
        if made is not None:
            return made
        try:
            return self._pull(parent_id, recipe)
        except ArtifactError as error:
            log.warning("What was prepared elsewhere cannot be used: %s", error)
            return None

    def share(self, version: NamedVersion, artifact: Artifact) -> bool:
        """Push what was made here, for others; returns whether it is new there. Raises
        `ArtifactError`.

        Where another machine was faster, its result stays.
        """
        parent, recipe = version.lineage.parents[0], version.lineage.recipe
        remote = open_remote(parse_reference(self._source))
        entry = remote.prepared_entry(parent.id, self._kind.make_key(recipe))
        # Asked at every start, so not insisted on: an absent remote holds up no replica for long.
        if remote.read_entry(entry) is not None:
            return False
        send_blobs(self, artifact, remote, False, self._on_progress)
        manifest = make_manifest(version, artifact, (), features=self._kind.features)
        return insist(lambda: remote.create_entry(entry, encode_manifest(manifest)))

    def _pull(self, parent_id: str, recipe: dict[str, Any]) -> tuple[NamedVersion, Artifact] | None:
        remote: Remote = open_remote(parse_reference(self._source))
        entry = remote.prepared_entry(parent_id, self._kind.make_key(recipe))
        content = insist(lambda: remote.read_entry(entry))
        if content is None:
            return None
        where = remote.describe(entry)
        manifest = parse_manifest(content, where)
        lineage = manifest.version.lineage
        if lineage.recipe != recipe or all(one.id != parent_id for one in lineage.parents):
            raise IntegrityError(f"{where} was made from another model or by another recipe")
        lineage = msgspec.structs.replace(lineage, requested=None, source=where)
        pulled = bring_in(self, remote, manifest, manifest.version.name, lineage, self._on_progress)
        self.pulled.add(pulled.artifact.id)
        return pulled.version, pulled.artifact


def share_prepared(store: BackedStore, parent_id: str, artifact_id: str) -> None:
    """Share what was made here of the remote's model; a failure is logged and nothing else."""
    for version in store.versions():
        lineage = version.lineage
        made_here = version.artifact == artifact_id and lineage.recipe and lineage.source is None
        if made_here and any(parent.id == parent_id for parent in lineage.parents):
            try:
                store.share(version, store.load(artifact_id))
            except ArtifactError as error:
                log.warning("%s is used here, but could not be shared: %s", version.label, error)
            return


def find_remote_source(version: NamedVersion) -> str | None:
    """The URL that a model was pulled from; None if it did not come from a remote."""
    requested = version.lineage.requested
    return requested if requested is not None and is_reference(requested) else None
