"""Google Cloud Storage as a remote, by its JSON API.

obstore speaks Google's XML API, which the emulators that this is tested with do not take. Uploads
are resumed within a file. Credentials are Google's application default credentials, found by
google-auth; `STORAGE_EMULATOR_HOST` names an emulator on this machine, which needs none.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from thrifty.artifacts.remotes.base import CHUNK_BYTES, OnBytes, RemoteAway
from thrifty.artifacts.remotes.http_calls import call, check, own_errors, read_body, read_json
from thrifty.artifacts.remotes.reference import Reference, is_loopback, redact, require_safe_url
from thrifty.artifacts.remotes.retries import ATTEMPTS, wait_before
from thrifty.errors import RemoteError

ENDPOINT = "https://storage.googleapis.com"
EMULATOR = "STORAGE_EMULATOR_HOST"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_RESUMES = 308


class GcsObjects:
    """Objects in a bucket below a prefix, as `Objects`."""

    def __init__(
        self,
        url: str,
        session: requests.Session,
        base: str,
        bucket: str,
        prefix: str,
        no_token: tuple[type[Exception], ...] = (),
    ) -> None:
        """`no_token` is what the session raises where it gets no token."""
        self._url = url
        self._session = session
        self._no_token = no_token
        self._objects = f"{base}/storage/v1/b/{quote(bucket, safe='')}/o"
        self._uploads = f"{base}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        self._prefix = f"{prefix}/" if prefix else ""

    def find_size(self, key: str) -> int | None:
        """As `Objects.find_size`."""
        response = self._call("GET", self._place(key), params={"fields": "size"})
        if response.status_code == 404:
            return None
        self._check(response, "a look for an object", 200)
        size = str(read_json(response, self._url).get("size", ""))
        if not size.isdigit():
            raise RemoteError(f"{self._url} does not say how large {key} is")
        return int(size)

    def read(self, key: str, offset: int) -> Iterator[bytes]:
        """As `Objects.read`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self._call(
            "GET", self._place(key), headers=headers, params={"alt": "media"}, stream=True
        )
        self._check(response, "a request for an object", 200, 206)
        skip = offset if response.status_code == 200 else 0
        for piece in read_body(response, self._url):
            if skip < len(piece):
                yield piece[skip:]
            skip = max(0, skip - len(piece))

    def put_file(self, key: str, path: Path, on_sent: OnBytes) -> None:
        """As `Objects.put_file`. After a broken connection it goes on where the store says."""
        size = path.stat().st_size
        if size == 0:
            self._put(key, b"", {})
            return
        session = self._begin_upload(key, size)
        sent, failures = 0, 0
        with path.open("rb") as file:
            while sent < size:
                file.seek(sent)
                begin = sent
                try:
                    sent = self._send_chunk(session, file.read(CHUNK_BYTES), sent, size)
                    failures = 0 if sent > begin else failures + 1
                except RemoteAway:
                    failures += 1
                    if failures >= ATTEMPTS:
                        raise
                    wait_before(failures)
                    sent = self._send_chunk(session, b"", None, size)
                if failures >= ATTEMPTS:
                    raise RemoteAway(f"{self._url} takes no more of {key} than {sent} bytes")
                on_sent(sent - begin)

    def create(self, key: str, content: bytes) -> bool:
        """As `Objects.create`: the generation must be 0, which no object has."""
        return self._put(key, content, {"ifGenerationMatch": "0"})

    def list_keys(self, prefix: str) -> list[str]:
        """As `Objects.list_keys`."""
        found: list[str] = []
        params = {"prefix": self._prefix + prefix, "fields": "items(name),nextPageToken"}
        while True:
            response = self._call("GET", self._objects, params=params)
            self._check(response, "a request for a list", 200)
            page = read_json(response, self._url)
            names = [str(one.get("name", "")) for one in page.get("items") or ()]
            found += [name.removeprefix(self._prefix) for name in names]
            token = page.get("nextPageToken")
            if not token:
                return sorted(found)
            params["pageToken"] = str(token)

    def _put(self, key: str, content: bytes, conditions: dict[str, str]) -> bool:
        """Write a small object in one request of two parts, its name and its bytes."""
        name = json.dumps({"name": self._prefix + key}).encode()
        boundary = secrets.token_hex(16).encode()
        data = b"".join(
            [
                b"--", boundary, b"\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n", name,
                b"\r\n--", boundary, b"\r\nContent-Type: application/octet-stream\r\n\r\n", content,
                b"\r\n--", boundary, b"--\r\n",
            ]
        )  # fmt: skip
        params = {"uploadType": "multipart", **conditions}
        headers = {"Content-Type": f"multipart/related; boundary={boundary.decode()}"}
        response = self._call("POST", self._uploads, params=params, headers=headers, data=data)
        if response.status_code == 412:
            return False
        self._check(response, "a small object", 200)
        return True

    def _begin_upload(self, key: str, size: int) -> str:
        params = {"uploadType": "resumable", "name": self._prefix + key}
        headers = {"X-Upload-Content-Length": str(size)}
        response = self._call("POST", self._uploads, params=params, headers=headers, data=b"")
        self._check(response, "the begin of an upload", 200)
        location = response.headers.get("location", "")
        require_safe_url(location, f"where {self._url} sends uploads")
        return location

    def _send_chunk(self, session: str, data: bytes, begin: int | None, size: int) -> int:
        """Send a part of an object, or only ask; returns how much of it the store has now."""
        span = "*" if begin is None else f"{begin}-{begin + len(data) - 1}"
        headers = {"Content-Range": f"bytes {span}/{size}"}
        response = self._call("PUT", session, headers=headers, data=data)
        if response.status_code in (404, 410):
            raise RemoteAway(f"{self._url} has lost an upload, which begins anew")
        if response.status_code == _RESUMES:
            end = response.headers.get("range", "").rpartition("-")[2]
            return int(end) + 1 if end.isdigit() else 0
        self._check(response, "a part of an object", 200, 201)
        took = str(read_json(response, self._url).get("size", ""))
        if took != str(size):
            raise RemoteAway(f"{self._url} ended an upload at {took} of {size} bytes")
        return size

    def _place(self, key: str) -> str:
        return f"{self._objects}/{quote(self._prefix + key, safe='')}"

    def _call(self, method: str, url: str, **arguments: Any) -> requests.Response:
        try:
            return call(self._session, method, url, **arguments)
        except self._no_token as error:
            raise RemoteError(
                f"{self._url}: Google gave no token: {redact(str(error))}; check the credentials "
                "(docs/remotes.md)"
            ) from None

    def _check(self, response: requests.Response, what: str, *expected: int) -> None:
        check(response, self._url, what, expected=expected)


def open_gcs(reference: Reference) -> GcsObjects:
    """The bucket and prefix of a `gs://` reference. Raises `RemoteError`."""
    emulator = os.environ.get(EMULATOR)
    if not emulator:
        session, no_token = _open_session()
        return GcsObjects(
            reference.root, session, ENDPOINT, reference.host, reference.path, no_token
        )
    base = (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")
    require_safe_url(base, EMULATOR)
    if not is_loopback(base.partition("://")[2]):
        raise RemoteError(
            f"{EMULATOR} must be on this machine: an emulator asks for no credentials"
        )
    return GcsObjects(reference.root, requests.Session(), base, reference.host, reference.path)


def _open_session() -> tuple[requests.Session, tuple[type[Exception], ...]]:
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import AuthorizedSession
    except ImportError:
        raise RemoteError(
            "this remote needs the package google-auth; install it with: pip install "
            "'thrifty[remotes]'"
        ) from None
    try:
        with own_errors(ENDPOINT):
            credentials, _ = google.auth.default(scopes=[SCOPE])
    except GoogleAuthError as error:
        raise RemoteError(
            f"no Google credentials were found: {redact(str(error))}; docs/remotes.md says where they "
            "are looked for"
        ) from None
    return AuthorizedSession(credentials), (GoogleAuthError,)
