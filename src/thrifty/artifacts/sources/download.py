"""One file over HTTP, resumable and checked."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests
import urllib3

from thrifty.artifacts.store import Store
from thrifty.errors import IntegrityError, SourceError
from thrifty.types import OnProgress, Progress

CHUNK_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 60.0
ATTEMPTS = 5
"""Tries in a row that bring nothing; one that brings bytes starts the count anew."""
RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 8.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None,
    store: Store,
    on_progress: OnProgress,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fetch `url` to `path`, continuing a `.part` file that an earlier try left beside it.

    Raises `SourceError` when the server gives up on us, `IntegrityError` when the bytes are not
    those of `sha256`.
    """
    part = path.with_name(f"{path.name}.part")
    if path.exists() and sha256 is not None and _checksum(path) == sha256:
        return
    _fetch_all(url, part, store, on_progress, headers or {})
    if sha256 is not None:
        found = _checksum(part)
        if found != sha256:
            part.unlink()
            raise IntegrityError(
                f"{url} arrived with the checksum {found[:12]}..., the index says {sha256[:12]}...; "
                "it was thrown away. Fetch it again"
            )
    os.replace(part, path)


def find_size(url: str) -> int | None:
    """The bytes of the file at `url`, as its server tells without sending it; None if it does not."""
    try:
        response = requests.head(
            url,
            headers={"Accept-Encoding": "identity"},
            allow_redirects=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except requests.RequestException:
        return None
    return (_length_of(response) or None) if response.ok else None


def _fetch_all(
    url: str, part: Path, store: Store, on_progress: OnProgress, headers: Mapping[str, str]
) -> None:
    """Bring the whole of `url` into `part`, in as many tries as it takes."""
    failures = 0
    while True:
        had = _size(part)
        try:
            _continue(url, part, store, on_progress, headers)
            return
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 416:
                if _total_of(error.response) == had:
                    return  # All of it had come before.
                part.unlink(missing_ok=True)
            elif status < 500 and status != 429:
                raise SourceError(
                    f"{url} answered {status}; check the name and your access"
                ) from None
            failure: Exception = error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SourceError(f"the disk is full while downloading to {part}") from None
            raise SourceError(f"{part} cannot be written: {error.strerror or error}") from None
        failures = 1 if _size(part) > had else failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(
                f"{url} could not be fetched after {ATTEMPTS} tries ({failure}); what has arrived "
                "is kept, and the next try goes on from there"
            )
        time.sleep(min(MAX_RETRY_DELAY_S, RETRY_DELAY_S * 2**failures))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _continue(
    url: str, part: Path, store: Store, on_progress: OnProgress, extra: Mapping[str, str]
) -> None:
    have = _size(part)
    headers = {**extra, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(
        url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    ) as response:
        response.raise_for_status()
        have = _begin_of(response, have)
        length = _length_of(response)
        total = have + length
        store.require_space(length, "the download")
        with part.open("r+b" if have else "wb") as file:
            # A server may begin a little before what it was asked for.
            file.seek(have)
            file.truncate()
            on_progress(Progress("download", have, total))
            for chunk in _read_pieces(response):
                file.write(chunk)
                have += len(chunk)
                on_progress(Progress("download", have, total))
        if length and have < total:
            raise requests.ConnectionError(f"the connection ended at {have} of {total} bytes")


def _read_pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives. `iter_content` fills its chunks before it gives them out, and throws
    away what it has of one when the connection breaks.
    """
    raw = response.raw
    read_some = getattr(raw, "read1", raw.read)
    while piece := read_some(CHUNK_BYTES, decode_content=True):
        yield piece


def _begin_of(response: requests.Response, have: int) -> int:
    """Where in the file the answer's bytes belong; 0 where the server ignores ranges."""
    if response.status_code != 206:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    begin = int(match.group(1)) if match and match.group(1) else have
    if begin > have:
        raise requests.ConnectionError(f"the server sent what comes after byte {begin}, not {have}")
    return begin


def _length_of(response: requests.Response) -> int:
    """How many bytes will come; 0 where that is not known."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return 0
    text = response.headers.get("content-length", "")
    return int(text) if text.isdigit() else 0


def _total_of(response: requests.Response) -> int | None:
    """The whole file's size, as a refused range tells it."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match.group(2)) if match and match.group(2).isdigit() else None
