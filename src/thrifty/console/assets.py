"""The console's files, read once and kept in memory, each plain and compressed.

They are served under `/console/assets/VERSION/`, where the version is a checksum over all of them:
browsers keep them for good, and a new release is fetched at once, whole. Only the page itself,
which names the version, is asked for anew each time.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from importlib.resources import files
from typing import NamedTuple

PREFIX = "/console/assets"
_TYPES = {
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
    "txt": b"text/plain; charset=utf-8",
    "json": b"application/json",
}
_PAGE = "index.html"
_VERSION_MARK = "{{version}}"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
).encode()
"""Scripts, styles and connections of this service alone; no inline code; HTML from texts only by
way of the sanitizer's policy."""


class Asset(NamedTuple):
    """One file."""

    media_type: bytes
    plain: bytes
    packed: bytes
    """With gzip."""


class Assets(NamedTuple):
    """All files of one release."""

    version: str
    page: Asset
    files: dict[str, Asset]


@functools.cache
def load_assets() -> Assets:
    """Read and compress the files; about 30 ms, once in a process."""
    folder = files(__package__).joinpath("static")
    found = {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.is_file()
    }
    digest = hashlib.sha256()
    for name, data in found.items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    version = digest.hexdigest()[:16]
    page = found.pop(_PAGE).decode().replace(_VERSION_MARK, version).encode()
    packed = {
        name: Asset(_TYPES[name.rpartition(".")[2]], data, _pack(data))
        for name, data in found.items()
    }
    return Assets(version, Asset(b"text/html; charset=utf-8", page, _pack(page)), packed)


def _pack(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)
