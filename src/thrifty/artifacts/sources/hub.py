"""Models on the Hugging Face hub, or on a mirror (`HF_ENDPOINT`).

huggingface_hub provides the list of files and the user's token. The transfer is our own: it resumes
after a kill and checks files that have a SHA-256. Pickled weights are not even downloaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from thrifty.artifacts.artifact import to_name
from thrifty.artifacts.inspect import PICKLE_SUFFIXES
from thrifty.artifacts.sources.download import download
from thrifty.artifacts.store import Store
from thrifty.errors import FormatRefused, SourceError, ThriftyError
from thrifty.types import OnProgress, Progress

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?(?::(.+\.gguf))?")
_ALWAYS = (".json", ".txt", ".model", ".jinja")


def fetch(reference: str, folder: Path, store: Store, on_progress: OnProgress) -> tuple[str, str]:
    """Download `org/name[@revision][:file.gguf]` into `folder/model`; return its name and pin."""
    repository, revision, gguf = _parse(reference)
    on_progress(Progress("resolve", 0, 0))
    with _own_errors(reference):
        commit = _download(repository, revision, gguf, folder, store, on_progress)
    return _name(repository, gguf), _pin(repository, commit, gguf)


def look_up(reference: str) -> tuple[str, str, int | None]:
    """The name that the model would get, its pinned source, and the size of the download in bytes.

    Downloads nothing. Raises `SourceError` and `FormatRefused`.
    """
    repository, revision, gguf = _parse(reference)
    with _own_errors(reference):
        info = _read_info(repository, revision)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        wanted = _choose(sizes, repository, gguf)
    pinned = _pin(repository, str(info.sha), gguf)
    return _name(repository, gguf), pinned, sum(wanted.values())


def _parse(reference: str) -> tuple[str, str | None, str | None]:
    """The repository, the revision and the file in a reference."""
    match = _REPOSITORY.fullmatch(reference)
    if match is None:
        raise SourceError(
            f"'hf:{reference}' is not valid; write hf:ORG/NAME, hf:ORG/NAME@REVISION, or "
            "hf:ORG/NAME:FILE.gguf"
        )
    repository, revision, gguf = match.groups()
    return repository, revision, gguf


def _name(repository: str, gguf: str | None) -> str:
    return to_name(PurePosixPath(gguf).stem if gguf else repository.partition("/")[2])


def _pin(repository: str, commit: str, gguf: str | None) -> str:
    return f"hf:{repository}@{commit}" + (f":{gguf}" if gguf else "")


@contextlib.contextmanager
def _own_errors(reference: str) -> Iterator[None]:
    """Convert errors of the library, or of the HTTP client it uses, to `SourceError`."""
    try:
        yield
    except ThriftyError:
        raise
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise SourceError(
            f"hf:{reference} could not be fetched: {first_line}. Check the name, the network and, "
            "for a gated model, your token (HF_TOKEN)"
        ) from None


def _find_endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _read_info(repository: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(_find_endpoint()).model_info(repository, revision=revision, files_metadata=True)


def _download(
    repository: str,
    revision: str | None,
    gguf: str | None,
    folder: Path,
    store: Store,
    on_progress: OnProgress,
) -> str:
    """Download the chosen files into `folder/model`; return their commit."""
    from huggingface_hub import get_token, hf_hub_url

    endpoint = _find_endpoint()
    info = _read_info(repository, revision)
    siblings = {s.rfilename: s for s in info.siblings or []}
    wanted = _choose({name: s.size or 0 for name, s in siblings.items()}, repository, gguf)
    commit, token = str(info.sha), get_token()
    target = _make_target(folder, commit)
    total = sum(wanted.values())
    arrived = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    store.require_space(max(0, total - arrived), f"downloading {repository}")
    done = 0.0
    for name, size in wanted.items():
        # A GGUF goes to the top level, wherever the repository keeps it.
        path = target / (PurePosixPath(name).name if name.endswith(".gguf") else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != size:
            download(
                hf_hub_url(repository, name, revision=commit, endpoint=endpoint),
                path,
                sha256=_read_sha256(siblings[name]),
                store=store,
                on_progress=_within(on_progress, done, total),
                headers={"authorization": f"Bearer {token}"} if token else {},
            )
        done += size
        on_progress(Progress("download", done, total))
    return commit


def _make_target(folder: Path, commit: str) -> Path:
    """Make `folder/model`; empty it if its files are of another commit."""
    note = folder / "commit"
    target = folder / "model"
    if not note.exists() or note.read_text() != commit:
        shutil.rmtree(target, ignore_errors=True)
        note.write_text(commit)
    target.mkdir(exist_ok=True)
    return target


def _read_sha256(sibling: Any) -> str | None:
    """The SHA-256 of a large file; small ones are plain git objects with a different checksum."""
    lfs = getattr(sibling, "lfs", None)
    value = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return str(value) if value else None


def _within(on_progress: OnProgress, before: float, total: float) -> OnProgress:
    """Report one file's progress as part of the total."""
    return lambda progress: on_progress(Progress("download", before + progress.done, total))


def _choose(files: dict[str, int], repository: str, gguf: str | None) -> dict[str, int]:
    """The files to download, with their sizes."""
    if gguf is not None:
        if gguf not in files:
            offered = ", ".join(name for name in files if name.endswith(".gguf")) or "none"
            raise SourceError(f"{repository} has no file {gguf!r}; its .gguf files: {offered}")
        return {gguf: files[gguf]}
    safetensors = {n: s for n, s in files.items() if n.endswith(".safetensors") and "/" not in n}
    if safetensors:
        small = {n: s for n, s in files.items() if n.endswith(_ALWAYS)}
        return {**small, **safetensors}
    if "openvino_model.xml" in files:
        return {n: s for n, s in files.items() if n.endswith((*_ALWAYS, ".xml", ".bin"))}
    ggufs = [name for name in files if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return {ggufs[0]: files[ggufs[0]]}
    if ggufs:
        raise FormatRefused(
            f"{repository} contains several models; name one: "
            + ", ".join(f"hf:{repository}:{name}" for name in ggufs[:8])
        )
    if any(Path(name).suffix in PICKLE_SUFFIXES for name in files):
        raise FormatRefused(
            f"{repository} has weights only as pickle, which can run code when it is read and is "
            "refused. Look for a revision or a conversion with safetensors"
        )
    raise FormatRefused(f"{repository} contains no supported model")
