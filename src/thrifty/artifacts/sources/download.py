"""Download one file over HTTP, resumable and checked."""

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
"""Consecutive attempts without any new bytes; new bytes reset the count."""
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
    """Download `url` to `path`, resuming from a `.part` file that an earlier attempt left.

    Raises `SourceError` if the server fails, `IntegrityError` if the checksum is not `sha256`.
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
                f"{url} arrived with the checksum {found[:12]}..., but the index says "
                f"{sha256[:12]}...; it was deleted. Fetch it again"
            )
    os.replace(part, path)


def find_size(url: str) -> int | None:
    """The size of the file at `url` in bytes, by a HEAD request; None if the server does not
    say.
    """
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
    """Download all of `url` into `part`, in as many attempts as necessary."""
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
                    return  # It was already complete.
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
                f"{url} could not be fetched in {ATTEMPTS} attempts ({failure}); the bytes "
                "received so far are kept, and the next attempt resumes from there"
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
            # A server may start a little before the requested offset.
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
    """Yield the body as it arrives. `iter_content` fills whole chunks and discards a partial one
    when the connection breaks.
    """
    raw = response.raw
    read_some = getattr(raw, "read1", raw.read)
    while piece := read_some(CHUNK_BYTES, decode_content=True):
        yield piece


def _begin_of(response: requests.Response, have: int) -> int:
    """The offset of the response's first byte; 0 if the server ignores ranges."""
    if response.status_code != 206:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    begin = int(match.group(1)) if match and match.group(1) else have
    if begin > have:
        raise requests.ConnectionError(f"the server started at byte {begin} instead of {have}")
    return begin


def _length_of(response: requests.Response) -> int:
    """The number of bytes to come; 0 if unknown."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return 0
    text = response.headers.get("content-length", "")
    return int(text) if text.isdigit() else 0


def _total_of(response: requests.Response) -> int | None:
    """The size of the whole file, from the response to a refused range."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match.group(2)) if match and match.group(2).isdigit() else None
