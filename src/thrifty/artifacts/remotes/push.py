"""Push a stored model to a remote: its blobs that are missing there, then its manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.artifacts.artifact import Artifact, FileEntry, NamedVersion, parse_label
from thrifty.artifacts.bases import find_base
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.remotes.base import BASE, Remote
from thrifty.artifacts.remotes.manifest import (
    Manifest,
    encode_manifest,
    make_manifest,
    parse_manifest,
)
from thrifty.artifacts.remotes.open import open_remote
from thrifty.artifacts.remotes.reference import parse_root
from thrifty.artifacts.remotes.retries import insist
from thrifty.artifacts.store import Store
from thrifty.artifacts.verdicts import find_verdict
from thrifty.errors import IntegrityError, RemoteError
from thrifty.types import OnProgress, Progress, ignore_progress

MAX_RACES = 100
"""How often another writer may take the next number before this one gives up."""


@dataclass(frozen=True)
class Pushed:
    """What a push came to."""

    reference: str
    """What to pull it by."""
    artifact: str
    moved_bytes: int
    present_bytes: int
    """Of blobs that were there already."""
    created: bool
    """Whether its manifest is new."""


def push(
    store: Store,
    label: str,
    url: str,
    *,
    rename: str | None = None,
    verify: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Pushed:
    """Push `name` or `name@vN` to the remote `url`. Blocks. An interrupted push is resumed.

    `rename` is another name for it there, with or without a version: without one it gets the next
    number. `verify` reads every blob back, and sends damaged ones again. An adapter takes its base
    along, unless that is there. Raises `RemoteError` if another model has this version, and
    `ArtifactError` kinds.
    """
    reference = parse_root(url)
    version, artifact = store.find(label)
    with _lease(store, artifact):
        store.verify(artifact, on_progress=on_progress)
        remote = open_remote(reference)
        name, number = parse_label(rename) if rename else (version.name, version.version)
        measured = _collect_measurements(store, version)
        entry = None
        if number is not None:
            # Before gigabytes are sent for nothing.
            entry = remote.entry_of(name, number)
            _require_same(remote, entry, artifact)
        moved, present = send_blobs(store, artifact, remote, verify, on_progress)
        if artifact.description.base is not None:
            base = _send_base(store, artifact, remote, verify, on_progress)
            moved, present = moved + base[0], present + base[1]
        if entry is not None:
            manifest = make_manifest(version, artifact, measured, name=name, number=number)
            created = commit(remote, entry, manifest)
        else:
            entry, created = _commit_next(remote, version, artifact, measured, name)
    return Pushed(remote.describe(entry), artifact.id, moved, present, created)


def _send_base(
    store: Store, adapter: Artifact, remote: Remote, verify: bool, on_progress: OnProgress
) -> tuple[int, int]:
    """Send what an adapter changes, under its id; returns the bytes as `send_blobs` does."""
    version, base = find_base(store, adapter)
    with _lease(store, base):
        sent = send_blobs(store, base, remote, verify, on_progress)
        manifest = make_manifest(version, base, store.read_measurements(base.id))
        commit(remote, remote.prepared_entry(base.id, BASE), manifest)
    return sent


def send_blobs(
    store: Store, artifact: Artifact, remote: Remote, verify: bool, on_progress: OnProgress
) -> tuple[int, int]:
    """Send the blobs that a remote lacks; returns the bytes sent and the bytes that were there.

    Raises `RemoteError`.
    """
    blobs = {entry.sha256: entry for entry in artifact.files}
    total = sum(entry.size for entry in blobs.values())
    folder = store.folder_of(artifact.id)
    done = moved = 0
    on_progress(Progress("upload", 0, total))
    for digest, entry in blobs.items():
        before = done
        if not _is_there(remote, entry, verify):

            def tell(count: int) -> None:
                nonlocal done
                done += count
                on_progress(Progress("upload", done, total))

            def send(digest: str = digest, entry: FileEntry = entry, before: int = before) -> None:
                nonlocal done
                done = before
                remote.put_blob(digest, folder / entry.path, tell)

            insist(send)
            _confirm(remote, entry, verify)
            moved += entry.size
        done = before + entry.size
        on_progress(Progress("upload", done, total))
    return moved, total - moved


def commit(remote: Remote, entry: str, manifest: Manifest) -> bool:
    """Write a manifest under a key that no other model has; returns whether it is new there.

    Raises `RemoteError` if another model has it.
    """
    content = encode_manifest(manifest)
    if insist(lambda: remote.create_entry(entry, content)):
        return True
    _require_same(remote, entry, manifest.artifact)
    return False


def _commit_next(
    remote: Remote,
    version: NamedVersion,
    artifact: Artifact,
    measured: tuple[Measurement, ...],
    name: str,
) -> tuple[str, bool]:
    """Write the manifest under the next number of a name, which other writers may take first."""
    for number in reversed(insist(lambda: remote.list_numbers(name))):
        entry = remote.entry_of(name, number)
        if _find_artifact(remote, entry) == artifact.id:
            return entry, False
    for _ in range(MAX_RACES):
        number = max(insist(lambda: remote.list_numbers(name)), default=0) + 1
        entry = remote.entry_of(name, number)
        manifest = make_manifest(version, artifact, measured, name=name, number=number)
        if insist(lambda e=entry, m=manifest: remote.create_entry(e, encode_manifest(m))):  # type: ignore[misc]
            return entry, True
        if _find_artifact(remote, entry) == artifact.id:
            return entry, False
    raise RemoteError(f"{remote.url}: others took {MAX_RACES} numbers of {name!r}; try again")


def _require_same(remote: Remote, entry: str, artifact: Artifact) -> None:
    """Raise `RemoteError` if another model has the key."""
    there = _find_artifact(remote, entry)
    if there not in (None, artifact.id):
        raise RemoteError(
            f"{remote.describe(entry)} is another model ({there}, not {artifact.id}), and a version "
            "never changes; push under another one with --as NAME@vN, or --as NAME for the next"
        )


def _find_artifact(remote: Remote, entry: str) -> str | None:
    content = insist(lambda: remote.read_entry(entry))
    if content is None:
        return None
    return parse_manifest(content, remote.describe(entry)).artifact.id


def _is_there(remote: Remote, entry: FileEntry, verify: bool) -> bool:
    size = insist(lambda: remote.find_blob(entry.sha256))
    if size != entry.size:
        return False
    return not verify or hash_blob(remote, entry) == entry.sha256


def _confirm(remote: Remote, entry: FileEntry, verify: bool) -> None:
    """Raise unless a blob that was just sent is there."""
    size = insist(lambda: remote.find_blob(entry.sha256))
    if size != entry.size or (verify and hash_blob(remote, entry) != entry.sha256):
        raise IntegrityError(
            f"{remote.url} took the blob sha256:{entry.sha256} ({entry.path}, {entry.size} bytes), and "
            f"has {'nothing' if size is None else f'{size} bytes'} of it that match; the manifest "
            "was not written. Try again, and if it stays so, do not trust this store"
        )


def hash_blob(remote: Remote, entry: FileEntry) -> str:
    """The SHA-256 of a blob's bytes as a remote gives them."""

    def read() -> str:
        digest = hashlib.sha256()
        for piece in remote.read_blob(entry.sha256, 0) if entry.size else ():
            digest.update(piece)
        return digest.hexdigest()

    return insist(read)


def _collect_measurements(store: Store, version: NamedVersion) -> tuple[Measurement, ...]:
    """What was measured of a model, with an ancestor's verdict if that is the one that counts."""
    own = store.read_measurements(version.artifact)
    verdict = find_verdict(store, version)
    if verdict is None or verdict in own:
        return own
    return (*own, verdict)


@contextlib.contextmanager
def _lease(store: Store, artifact: Artifact) -> Iterator[None]:
    """Keep the garbage collector from an artifact during the block."""
    descriptor = store.lease(artifact.id)
    try:
        yield
    finally:
        os.close(descriptor)
