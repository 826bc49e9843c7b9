"""Pull a model from a remote into the store: only blobs that are missing, each checked as it comes.

Bytes that do not match their digest never enter the store. Unfinished blobs stay in the stage, from
which the next attempt resumes, from whichever remote it comes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from thrifty.artifacts.artifact import Artifact, FileEntry, Lineage, NamedVersion, parse_label
from thrifty.artifacts.disk import try_hash
from thrifty.artifacts.remotes.base import BASE, NotThere, Remote, RemoteAway
from thrifty.artifacts.remotes.manifest import Manifest, parse_manifest
from thrifty.artifacts.remotes.open import open_remote
from thrifty.artifacts.remotes.reference import Reference, parse_reference
from thrifty.artifacts.remotes.retries import ATTEMPTS, insist, wait_before
from thrifty.artifacts.store import Store
from thrifty.errors import ArtifactError, IntegrityError, RemoteError
from thrifty.types import OnProgress, Progress, ignore_progress

OnFetched = Callable[[int], None]
"""Called with how many bytes of a blob are here."""


@dataclass(frozen=True)
class Pulled:
    """What a pull came to."""

    version: NamedVersion
    artifact: Artifact
    moved_bytes: int
    """What came from the remote this time."""
    present_bytes: int
    """What was here already."""


@dataclass(frozen=True)
class FoundRemote:
    """A model in a remote, as its manifest describes it."""

    manifest: Manifest
    reference: str
    """What always means these bytes."""
    missing_bytes: int
    """Of blobs that the store lacks."""


def pull(
    store: Store, url: str, *, name: str | None = None, on_progress: OnProgress = ignore_progress
) -> Pulled:
    """Pull the model that `url` names, as the next version of `name` or of its own name. Blocks.

    The same model from the same place under the same name is the same version. Raises
    `RemoteError`, and `IntegrityError` for what does not match its digest.
    """
    if name is not None and parse_label(name)[1] is not None:
        raise RemoteError(f"{name!r} has a version; the store gives the next one by itself")
    on_progress(Progress("resolve", 0, 0))
    remote, entry, manifest = _read(parse_reference(url))
    pinned = remote.describe(entry)
    lineage = msgspec.structs.replace(manifest.version.lineage, requested=url, source=pinned)
    _bring_base(store, remote, manifest.artifact, on_progress)
    return bring_in(store, remote, manifest, name or manifest.version.name, lineage, on_progress)


def _bring_base(store: Store, remote: Remote, adapter: Artifact, on_progress: OnProgress) -> None:
    """Bring the model that an adapter changes into the store, unless it is there."""
    base = adapter.description.base
    if base is None or store.has(base.id):
        return
    entry = remote.prepared_entry(base.id, BASE)
    content = insist(lambda: remote.read_entry(entry))
    if content is None:
        raise RemoteError(
            f"{remote.url} does not have the model that this adapter changes, {base.name} ({base.id}); "
            "push the adapter again, which takes it along"
        )
    where = remote.describe(entry)
    manifest = parse_manifest(content, where)
    if manifest.artifact.id != base.id:
        raise IntegrityError(f"{where} is another model than its key says; push the adapter again")
    lineage = msgspec.structs.replace(manifest.version.lineage, source=where)
    bring_in(store, remote, manifest, manifest.version.name, lineage, on_progress)


def look_up_remote(store: Store, url: str) -> FoundRemote:
    """What `url` names, without fetching anything else. Raises as `pull` does."""
    remote, entry, manifest = _read(parse_reference(url))
    missing = sum(
        one.size
        for one in manifest.blobs.values()
        if not (store.root / "blobs" / one.sha256).exists()
    )
    return FoundRemote(manifest, remote.describe(entry), missing)


def bring_in(
    store: Store,
    remote: Remote,
    manifest: Manifest,
    name: str,
    lineage: Lineage,
    on_progress: OnProgress,
) -> Pulled:
    """Bring a manifest's model into the store under `name`. Raises as `pull` does."""
    with store.stage(f"remote {manifest.artifact.id}") as folder:
        model, parts = folder / "model", folder / "parts"
        try:
            for path in (model, parts):
                path.mkdir(exist_ok=True)
            moved = _collect(store, remote, manifest, model, parts, on_progress)
        except OSError as error:
            what = f"{manifest.version.label} could not be stored"
            raise ArtifactError(store.describe_disk_fault(what, error)) from None
        version, artifact = store.add(model, name, lineage, on_progress=on_progress)
        shutil.rmtree(parts, ignore_errors=True)
    assert artifact.id == manifest.artifact.id
    store.add_measurements(artifact.id, manifest.measurements)
    total = sum(entry.size for entry in manifest.blobs.values())
    return Pulled(version, artifact, moved, total - moved)


def _read(reference: Reference) -> tuple[Remote, str, Manifest]:
    """The manifest that a reference means, with its remote and key there."""
    remote, entry = _find_entry(reference)
    content = insist(lambda: remote.read_entry(entry))
    if content is None:
        numbers = insist(lambda: remote.list_numbers(reference.name or ""))
        there = ", ".join(f"v{number}" for number in numbers) or "none"
        raise NotThere(f"{remote.describe(entry)} does not exist; versions there: {there}")
    return remote, entry, parse_manifest(content, remote.describe(entry))


def _find_entry(reference: Reference) -> tuple[Remote, str]:
    remote = open_remote(reference)
    try:
        return remote, insist(lambda: remote.find_entry(reference))
    except NotThere as error:
        if reference.scheme == "oci" or reference.name is None:
            raise
        # The URL may be that of a remote which holds a single model.
        whole = reference.as_root()
        try:
            remote = open_remote(whole)
            return remote, insist(lambda: remote.find_entry(whole))
        except NotThere as other:
            raise (other if other.names else error) from None


def _collect(
    store: Store,
    remote: Remote,
    manifest: Manifest,
    model: Path,
    parts: Path,
    on_progress: OnProgress,
) -> int:
    """Put every file of a model into the folder `model`; returns how many bytes were moved."""
    blobs = manifest.blobs
    have = {digest: _find_here(store, entry, model) for digest, entry in blobs.items()}
    missing = [entry for digest, entry in blobs.items() if have[digest] is None]
    left = sum(max(0, entry.size - _size(parts / entry.sha256)) for entry in missing)
    store.require_space(left, f"pulling {manifest.version.label}")
    total, done, moved = sum(entry.size for entry in missing), 0, 0
    for entry in missing:
        before = done

        def tell(count: int, before: int = before) -> None:
            on_progress(Progress("download", before + count, total))

        moved += _fetch(remote, entry, parts / entry.sha256, tell)
        have[entry.sha256] = parts / entry.sha256
        done += entry.size
    for entry in manifest.artifact.files:
        target, source = model / entry.path, have[entry.sha256]
        assert source is not None
        if target != source:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(source, target)
    for entry in missing:
        (parts / entry.sha256).unlink()
    return moved


def _find_here(store: Store, entry: FileEntry, model: Path) -> Path | None:
    """A blob's bytes, if they are here and whole: in the store, or in a stage that was left."""
    for path in (store.root / "blobs" / entry.sha256, model / entry.path):
        if path.is_file() and path.stat().st_size == entry.size and try_hash(path) == entry.sha256:
            return path
    return None


def _fetch(remote: Remote, entry: FileEntry, part: Path, tell: OnFetched) -> int:
    """Bring a blob's bytes into the file `part`, going on where an earlier attempt ended.

    Returns how many bytes came.
    """
    _require_size(remote, entry)
    failures = 0
    if _size(part) > entry.size:
        part.unlink()
    began = _size(part)
    while True:
        had = _size(part)
        tell(had)
        try:
            with part.open("ab") as file:
                if had < entry.size:
                    _append(remote, entry, file, had, tell)
                os.fsync(file.fileno())
            if _size(part) >= entry.size:
                break
            raise RemoteAway(f"{remote.url} broke off at {_size(part)} of {entry.size} bytes")
        except RemoteAway as error:
            failures = 1 if _size(part) > had else failures + 1
            if failures >= ATTEMPTS:
                raise RemoteError(
                    f"{error}. {ATTEMPTS} attempts brought nothing new; what came so far is kept, and "
                    "the next attempt goes on from there"
                ) from None
            wait_before(failures)
    found = _hash(part)
    if found != entry.sha256 or _size(part) != entry.size:
        part.unlink()
        raise _make_lie(remote, entry, f"its bytes have the checksum sha256:{found}")
    return entry.size - began


def _append(remote: Remote, entry: FileEntry, file: BinaryIO, have: int, tell: OnFetched) -> None:
    for piece in remote.read_blob(entry.sha256, have):
        file.write(piece)
        have += len(piece)
        tell(have)
        if have > entry.size:
            return


def _require_size(remote: Remote, entry: FileEntry) -> None:
    size = insist(lambda: remote.find_blob(entry.sha256))
    if size is None:
        raise RemoteError(
            f"{remote.url} does not have the blob sha256:{entry.sha256} ({entry.path}), which the "
            "manifest names; push the model again"
        )
    if size != entry.size:
        raise _make_lie(remote, entry, f"it has {size} bytes instead of {entry.size}")


def _make_lie(remote: Remote, entry: FileEntry, found: str) -> IntegrityError:
    return IntegrityError(
        f"{remote.url}: the blob sha256:{entry.sha256} ({entry.path}) is not what its name says: "
        f"{found}. Nothing of it entered the store. To mend it, push the model again with --verify"
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
