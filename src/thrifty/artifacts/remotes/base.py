"""The interface of a remote, and what the kinds that keep objects under keys have in common.

The keys of those, below the URL's path:

blobs/sha256/<digest>                one file's bytes
models/<name>/v<N>.json              the manifest of one version of a name
prepared/<artifact>/<key>.json       the manifest of what an engine prepared of an artifact
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from thrifty.artifacts.remotes.reference import Reference
from thrifty.errors import RemoteError

MAX_MANIFEST_BYTES = 16_000_000
"""Far more than any real manifest: a larger one is not ours."""
CHUNK_BYTES = 16 * 1024 * 1024
"""What is sent in one request, so that an interruption costs no more than that."""
_VERSION = re.compile(r"v([1-9][0-9]{0,8})\.json")

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were just sent; negative where they are sent again."""


class RemoteAway(RemoteError):
    """A remote does not answer now, or broke off; the same may succeed later."""


class NotThere(RemoteError):
    """A remote has no such model. `names` are those that it has."""

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


BASE = "base"
"""The key of a model that adapters change, among what belongs to its artifact."""


class Remote(Protocol):
    """A store elsewhere. All methods block and raise `RemoteError`; `RemoteAway` may pass."""

    @property
    def url(self) -> str:
        """Where it is, for people."""
        ...

    def entry_of(self, name: str, number: int) -> str:
        """The key of the manifest of `name@vN`."""
        ...

    def prepared_entry(self, artifact_id: str, key: str) -> str:
        """The key of the manifest of what was prepared of an artifact, or with the key `BASE` of
        itself, where adapters that are there need it.
        """
        ...

    def find_entry(self, reference: Reference) -> str:
        """The key of the manifest that a reference means: the newest version where it names none.

        Raises `NotThere`, which lists what is there.
        """
        ...

    def list_numbers(self, name: str) -> list[int]:
        """The numbers of a name's versions."""
        ...

    def read_entry(self, entry: str) -> bytes | None:
        """A manifest; None if there is none."""
        ...

    def create_entry(self, entry: str, content: bytes) -> bool:
        """Write a manifest if there is none under this key; returns whether it was written."""
        ...

    def describe(self, entry: str) -> str:
        """A reference to an entry that was read or created, which always means the same bytes."""
        ...

    def find_blob(self, digest: str) -> int | None:
        """The size of a blob; None if it is not there."""
        ...

    def read_blob(self, digest: str, offset: int) -> Iterator[bytes]:
        """A blob's bytes from `offset` on, in pieces."""
        ...

    def put_blob(self, digest: str, path: Path, on_sent: OnBytes) -> None:
        """Send the file at `path` as a blob, replacing one of the same name."""
        ...


class Objects(Protocol):
    """A place that keeps objects under keys, whole or not at all."""

    def find_size(self, key: str) -> int | None:
        """An object's size; None if it is not there."""
        ...

    def read(self, key: str, offset: int) -> Iterator[bytes]:
        """An object's bytes from `offset` on, in pieces."""
        ...

    def put_file(self, key: str, path: Path, on_sent: OnBytes) -> None:
        """Write a file's bytes as an object, replacing one under the same key."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write an object if there is none under this key; returns whether it was written."""
        ...

    def list_keys(self, prefix: str) -> list[str]:
        """The keys below `prefix`, which ends with a slash."""
        ...


class KeyedRemote:
    """A remote in a place that keeps objects under keys."""

    def __init__(self, url: str, objects: Objects) -> None:
        self.url = url
        self._objects = objects

    def entry_of(self, name: str, number: int) -> str:
        """As `Remote.entry_of`."""
        return f"models/{name}/v{number}.json"

    def prepared_entry(self, artifact_id: str, key: str) -> str:
        """As `Remote.prepared_entry`."""
        return f"prepared/{artifact_id}/{key}.json"

    def find_entry(self, reference: Reference) -> str:
        """As `Remote.find_entry`. A remote that holds one model needs no name."""
        name = reference.name or self._find_only_name()
        if reference.number is not None:
            return self.entry_of(name, reference.number)
        numbers = self.list_numbers(name)
        if not numbers:
            raise self._miss(f"{self.url} has no model {name!r}")
        return self.entry_of(name, max(numbers))

    def list_numbers(self, name: str) -> list[int]:
        """As `Remote.list_numbers`."""
        keys = self._objects.list_keys(f"models/{name}/")
        found = [_VERSION.fullmatch(key.rpartition("/")[2]) for key in keys]
        return sorted(int(match[1]) for match in found if match)

    def list_names(self) -> list[str]:
        """The names of the models that are there."""
        parts = [key.split("/") for key in self._objects.list_keys("models/")]
        return sorted({part[1] for part in parts if len(part) == 3 and _VERSION.fullmatch(part[2])})

    def read_entry(self, entry: str) -> bytes | None:
        """As `Remote.read_entry`."""
        size = self._objects.find_size(entry)
        if size is None:
            return None
        if size > MAX_MANIFEST_BYTES:
            raise RemoteError(f"{self.url}/{entry} has {size} bytes, which is no manifest")
        content = bytearray()
        for piece in self._objects.read(entry, 0) if size else ():
            content += piece
            if len(content) > size:
                break
        return bytes(content)

    def create_entry(self, entry: str, content: bytes) -> bool:
        """As `Remote.create_entry`."""
        return self._objects.create(entry, content)

    def describe(self, entry: str) -> str:
        """As `Remote.describe`."""
        folder, name, file = entry.split("/")
        if folder != "models":
            return f"{self.url}/{entry}"
        return f"{self.url}/{name}@{file.removesuffix('.json')}"

    def find_blob(self, digest: str) -> int | None:
        """As `Remote.find_blob`."""
        return self._objects.find_size(_blob_key(digest))

    def read_blob(self, digest: str, offset: int) -> Iterator[bytes]:
        """As `Remote.read_blob`."""
        return self._objects.read(_blob_key(digest), offset)

    def put_blob(self, digest: str, path: Path, on_sent: OnBytes) -> None:
        """As `Remote.put_blob`."""
        self._objects.put_file(_blob_key(digest), path, on_sent)

    def _find_only_name(self) -> str:
        names = self.list_names()
        if len(names) != 1:
            raise self._miss(f"{self.url} names no model")
        return names[0]

    def _miss(self, what: str) -> NotThere:
        names = self.list_names()
        there = "no model is there. To push one: thrifty models push NAME URL"
        if names:
            listed = ", ".join(f"{self.url}/{name}" for name in names[:20])
            there = f"there are: {listed}{' and others' if len(names) > 20 else ''}"
        return NotThere(f"{what}; {there}", names)


def _blob_key(digest: str) -> str:
    return f"blobs/sha256/{digest}"
