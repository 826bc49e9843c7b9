"""An OCI registry as a remote, by the distribution API.

A model is an image manifest whose layers are the model's files as they are, so that other tools
(`oras pull`) fetch them too, and whose configuration is our own manifest. Versions are tags. A
registry has no way to write a tag only if it is absent: this client looks before and after it
writes, and what it prints is the manifest's digest, which never means anything else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from thrifty.artifacts.remotes.base import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    NotThere,
    OnBytes,
    RemoteAway,
)
from thrifty.artifacts.remotes.http_calls import call, check, read_body, read_json
from thrifty.artifacts.remotes.manifest import parse_manifest
from thrifty.artifacts.remotes.oci_access import RegistryAccess
from thrifty.artifacts.remotes.reference import Reference, is_loopback, require_safe_url
from thrifty.artifacts.remotes.retries import ATTEMPTS, wait_before
from thrifty.errors import IntegrityError, RemoteError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE = "application/vnd.thrifty.model.v1+json"
FILE_TYPE = "application/vnd.thrifty.model.file.v1"
TITLE = "org.opencontainers.image.title"
MAX_TAG_PAGES = 1000
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_HUB = "registry-1.docker.io"


class OciRemote:
    """One repository of a registry. An entry is a tag or a digest."""

    def __init__(self, reference: Reference) -> None:
        host = _HUB if reference.host in ("docker.io", "index.docker.io") else reference.host
        self.url = reference.root
        self._base = f"{'http' if is_loopback(host) else 'https'}://{host}"
        self._repository = reference.path
        self._tag = reference.tag
        self._session = requests.Session()
        self._access = RegistryAccess(self._session, reference.host)
        self._digests: dict[str, str] = {}
        """Of entries that were read or created."""

    def entry_of(self, name: str, number: int) -> str:
        """As `Remote.entry_of`: the tag of the URL, or `vN`."""
        return self._tag or f"v{number}"

    def prepared_entry(self, artifact_id: str, key: str) -> str:
        """As `Remote.prepared_entry`."""
        return f"prepared-{artifact_id}-{key}"

    def find_entry(self, reference: Reference) -> str:
        """As `Remote.find_entry`."""
        if reference.tag is not None:
            return reference.tag
        numbers = self.list_numbers("")
        if not numbers:
            raise NotThere(
                f"{self.url} has no version (a tag v1, v2, ...); name a tag ({self.url}:TAG), or push "
                "a model: thrifty models push NAME URL"
            )
        return f"v{max(numbers)}"

    def list_numbers(self, name: str) -> list[int]:
        """As `Remote.list_numbers`: by the repository's tags."""
        found: list[int] = []
        url: str | None = self._url("tags/list")
        for _ in range(MAX_TAG_PAGES):
            if url is None:
                break
            response = self._call("GET", url)
            if response.status_code == 404:
                return []
            self._check(response, "a request for the tags", 200)
            tags = read_json(response, self.url).get("tags") or []
            matches = [_VERSION.fullmatch(tag) for tag in tags if isinstance(tag, str)]
            found += [int(match[1]) for match in matches if match]
            following = response.links.get("next", {}).get("url")
            url = self._resolve(url, following) if following else None
        return sorted(found)

    def read_entry(self, entry: str) -> bytes | None:
        """As `Remote.read_entry`."""
        content = self._read_manifest(entry)
        if content is None:
            return None
        self._digests[entry] = _digest(content)
        config = _find_config(content, self.describe(entry))
        blob = b"".join(self.read_blob(config.removeprefix("sha256:"), 0))
        if _digest(blob) != config:
            raise IntegrityError(
                f"{self.describe(entry)} is not what its digest says; push it again"
            )
        return blob

    def create_entry(self, entry: str, content: bytes) -> bool:
        """As `Remote.create_entry`; see the module's docstring for what a registry can promise."""
        if self._read_manifest(entry) is not None:
            return False
        self._put_config(content)
        made = _make_manifest(content, self.url)
        self._digests[entry] = _digest(made)
        headers = {"Content-Type": MANIFEST_TYPE}
        response = self._call("PUT", self._url(f"manifests/{entry}"), headers=headers, data=made)
        self._check(response, "the manifest", 201)
        return self._read_manifest(entry) == made

    def describe(self, entry: str) -> str:
        """As `Remote.describe`: by digest, once it is known."""
        digest = self._digests.get(entry, entry)
        return f"{self.url}{'@' if digest.startswith('sha256:') else ':'}{digest}"

    def find_blob(self, digest: str) -> int | None:
        """As `Remote.find_blob`."""
        response = self._call("HEAD", self._url(f"blobs/sha256:{digest}"))
        if response.status_code == 404:
            return None
        self._check(response, "a look for a blob", 200)
        size = response.headers.get("content-length", "")
        if not size.isdigit():
            raise RemoteError(f"{self.url} does not say how large the blob sha256:{digest} is")
        return int(size)

    def read_blob(self, digest: str, offset: int) -> Iterator[bytes]:
        """As `Remote.read_blob`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = self._url(f"blobs/sha256:{digest}")
        response = self._call("GET", url, headers=headers, stream=True)
        self._check(response, "a request for a blob", 200, 206)
        skip = offset if response.status_code == 200 else 0
        for piece in read_body(response, self.url):
            if skip < len(piece):
                yield piece[skip:]
            skip = max(0, skip - len(piece))

    def put_blob(self, digest: str, path: Path, on_sent: OnBytes) -> None:
        """As `Remote.put_blob`, in chunks; goes on where the registry says if one breaks off."""
        location, least = self._begin_upload()
        chunk, sent, failures = max(CHUNK_BYTES, least), 0, 0
        size = path.stat().st_size
        with path.open("rb") as file:
            while sent < size:
                file.seek(sent)
                data = file.read(chunk)
                try:
                    location = self._send_chunk(location, sent, data)
                    begin, sent, failures = sent, sent + len(data), 0
                except RemoteAway:
                    failures += 1
                    if failures >= ATTEMPTS:
                        raise
                    wait_before(failures)
                    begin, sent, location = sent, *self._find_offset(location)
                on_sent(sent - begin)
        joint = "&" if "?" in location else "?"
        response = self._call("PUT", f"{location}{joint}digest=sha256:{digest}", pushing=True)
        self._check(response, f"the blob sha256:{digest}", 201)

    def _begin_upload(self) -> tuple[str, int]:
        response = self._call("POST", self._url("blobs/uploads/"), pushing=True, data=b"")
        self._check(response, "the begin of an upload", 202)
        least = response.headers.get("oci-chunk-min-length", "0")
        return self._locate(response), int(least) if least.isdigit() else 0

    def _send_chunk(self, location: str, begin: int, data: bytes) -> str:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{begin}-{begin + len(data) - 1}",
        }
        response = self._call("PATCH", location, headers=headers, data=data, pushing=True)
        self._check(response, "a part of a blob", 202)
        return self._locate(response)

    def _find_offset(self, location: str) -> tuple[int, str]:
        """How much of an upload the registry has, and where it goes on; anew if it is lost."""
        response = self._call("GET", location, pushing=True)
        if response.status_code == 404:
            return 0, self._begin_upload()[0]
        self._check(response, "a question about an upload", 204)
        end = response.headers.get("range", "").rpartition("-")[2]
        # "0-0" stands for nothing as well as for one byte: a begin from there costs one byte.
        have = int(end) + 1 if end.isdigit() and int(end) > 0 else 0
        return (have, self._locate(response)) if have else (0, self._begin_upload()[0])

    def _put_config(self, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if self.find_blob(digest) is not None:
            return
        location, _ = self._begin_upload()
        joint = "&" if "?" in location else "?"
        response = self._call(
            "PUT", f"{location}{joint}digest=sha256:{digest}", data=content, pushing=True,
            headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip
        self._check(response, "the manifest's content", 201)

    def _read_manifest(self, entry: str) -> bytes | None:
        headers = {"Accept": f"{MANIFEST_TYPE}, */*"}
        url = self._url(f"manifests/{entry}")
        response = self._call("GET", url, headers=headers, stream=True)
        if response.status_code == 404:
            response.close()
            return None
        self._check(response, "a request for a manifest", 200)
        content = b""
        for piece in read_body(response, self.url):
            content += piece
            if len(content) > MAX_MANIFEST_BYTES:
                raise RemoteError(f"{self.describe(entry)} is larger than any manifest")
        if entry.startswith("sha256:") and _digest(content) != entry:
            raise IntegrityError(f"{self.url} gave another manifest than {entry}; do not trust it")
        return content

    def _call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        stream: bool = False,
        pushing: bool = False,
    ) -> requests.Response:
        """One request, with the credentials that the registry asks for."""
        scope = f"repository:{self._repository}:pull" + (
            ",push" if pushing or method == "PUT" else ""
        )
        own = urlsplit(url).netloc == urlsplit(self._base).netloc
        for _ in range(3):
            sent = {**(headers or {}), **(self._access.header(scope) if own else {})}
            response = call(self._session, method, url, headers=sent, data=data, stream=stream)
            challenge = response.headers.get("www-authenticate", "")
            if response.status_code != 401 or not own or not challenge:
                return response
            if not self._access.answer(challenge, scope):
                break
            response.close()
        return response

    def _check(self, response: requests.Response, what: str, *expected: int) -> None:
        check(response, self.url, what, expected=expected)

    def _url(self, path: str) -> str:
        return f"{self._base}/v2/{self._repository}/{path}"

    def _locate(self, response: requests.Response) -> str:
        location = response.headers.get("location")
        if not location:
            raise RemoteError(f"{self.url} does not say where an upload goes on; it is no registry")
        return self._resolve(response.url, location)

    def _resolve(self, base: str, location: str) -> str:
        url = urljoin(base, location)
        require_safe_url(url, f"where {self.url} sends uploads")
        return url


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _make_manifest(content: bytes, where: str) -> bytes:
    """The image manifest of a model whose own manifest is `content`."""
    manifest = parse_manifest(content, where)
    layers = [
        {
            "mediaType": FILE_TYPE, "digest": f"sha256:{entry.sha256}", "size": entry.size,
            "annotations": {TITLE: entry.path},
        }
        for entry in manifest.artifact.files
    ]  # fmt: skip
    made = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": MODEL_TYPE, "digest": _digest(content), "size": len(content)},
        "layers": layers,
        "annotations": {TITLE: manifest.version.name},
    }
    return json.dumps(made, indent=1).encode()


def _find_config(content: bytes, where: str) -> str:
    """The digest of a model's own manifest. Raises `RemoteError` for images of other kinds."""
    try:
        found: Any = json.loads(content)
        config = found["config"]
        kind, digest = config["mediaType"], config["digest"]
    except (ValueError, KeyError, TypeError):
        kind = digest = None
    if kind != MODEL_TYPE or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(digest)):
        raise RemoteError(f"{where} is no model that Thrifty pushed; its kind is {kind!r:.80}")
    return str(digest)
