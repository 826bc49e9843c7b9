"""One file over HTTP, resumable and checked."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import requests

from thrifty.artifacts.store import Store
from thrifty.errors import IntegrityError, SourceError
from thrifty.types import OnProgress, Progress

CHUNK_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 60.0
ATTEMPTS = 5


def download(
    url: str, path: Path, *, sha256: str | None, store: Store, on_progress: OnProgress
) -> None:
    """Fetch `url` to `path`, continuing a `.part` file that an earlier try left beside it.

    Raises `SourceError` when the server gives up on us, `IntegrityError` when the bytes are not
    those of `sha256`.
    """
    part = path.with_name(f"{path.name}.part")
    if path.exists() and sha256 is not None and _checksum(path) == sha256:
        return
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(8.0, 0.5 * 2**attempt))
        try:
            _continue(url, part, store, on_progress)
            break
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 416:
                part.unlink(missing_ok=True)
            elif status < 500 and status != 429:
                raise SourceError(
                    f"{url} answered {status}; check the name and your access"
                ) from None
            failure = error
        except (requests.RequestException, OSError) as error:
            if isinstance(error, OSError) and error.errno == 28:
                raise SourceError(f"the disk is full while downloading to {part}") from None
            failure = error
    else:
        raise SourceError(
            f"{url} could not be fetched after {ATTEMPTS} tries ({failure}); what has arrived is "
            "kept, and the next try goes on from there"
        )
    if sha256 is not None:
        found = _checksum(part)
        if found != sha256:
            part.unlink()
            raise IntegrityError(
                f"{url} arrived with the checksum {found[:12]}..., the index says {sha256[:12]}...; "
                "it was thrown away. Fetch it again"
            )
    os.replace(part, path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _continue(url: str, part: Path, store: Store, on_progress: OnProgress) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(
        url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    ) as response:
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        length = int(response.headers.get("content-length", 0))
        total = have + length
        store.require_space(length, "the download")
        with part.open("ab" if have else "wb") as file:
            on_progress(Progress("download", have, total))
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                on_progress(Progress("download", have, total))
        if total and have < total:
            raise requests.ConnectionError(f"the connection ended at {have} of {total} bytes")
