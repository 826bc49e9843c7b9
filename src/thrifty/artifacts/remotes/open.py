"""Open the remote of a reference."""

from __future__ import annotations

from pathlib import Path

from thrifty.artifacts.remotes.base import KeyedRemote, Remote
from thrifty.artifacts.remotes.reference import Reference


def open_remote(reference: Reference) -> Remote:
    """The remote that a reference names. What it needs is imported here. Raises `RemoteError`."""
    if reference.scheme == "file":
        from thrifty.artifacts.remotes.folder import FolderObjects

        return KeyedRemote(reference.root, FolderObjects(Path(reference.path)))
    if reference.scheme == "oci":
        from thrifty.artifacts.remotes.oci import OciRemote

        return OciRemote(reference)
    if reference.scheme == "gs":
        from thrifty.artifacts.remotes.gcs import open_gcs

        return KeyedRemote(reference.root, open_gcs(reference))
    from thrifty.artifacts.remotes.object_store import open_azure, open_s3

    opener = open_s3 if reference.scheme == "s3" else open_azure
    return KeyedRemote(reference.root, opener(reference))
