"""Texts that are encrypted in the database where the spec asks for it (`record.encrypt`).

Columns of the type `SealedText` encrypt what is written to them and decrypt what is read, so that
no reader or writer needs to know. A sealed text is

    thrifty-sealed:1:KEY-ID:BASE64(nonce + ciphertext)

by AES-256-GCM with a random nonce of 96 bits; the name of the column is authenticated with it, so
that a text cannot be moved to another column. The empty text and NULL are stored as they are.

Where the keys are is one row in the table `text_keys`: a file, or an environment variable. Both hold
one key a line (32 bytes in base64); the last one writes, all of them read. A text whose key is
missing reads as the empty text, and is counted. A text that cannot be encrypted is never written
plain: writing it raises `TextKeyError`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, Text, TypeDecorator, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError

from thrifty.errors import TextKeyError

log = logging.getLogger(__name__)

MARK = "thrifty-sealed:"
SEALED = f"{MARK}1:"
_PLAIN = f"{MARK}0:"
"""Before a plain text that begins with the mark itself."""
KEY_BYTES = 32
ID_CHARS = 8
HEAD_CHARS = len(SEALED) + ID_CHARS
"""The characters by which a sealed text names its key."""
_NONCE_BYTES = 12
FRESH_S = 5.0
"""How long it may take until a process sees that keys or their place have changed."""
NEEDED = "encrypted texts need pip install 'thrifty[encrypt]'"

unreadable: Counter[str] = Counter()
"""Texts that this process could not decrypt, by the id of their key."""


class TextKey(NamedTuple):
    """One key and its id, the beginning of its SHA-256."""

    id: str
    cipher: Any


class KeySource(NamedTuple):
    """Where keys are read from: `kind` is `file` or `env`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def describe(self) -> str:
        """In words."""
        return f"the file {self.name}" if self.kind == "file" else f"the variable {self.name}"


def parse_source(written: str) -> KeySource:
    """The source that `str(source)` wrote."""
    kind, _, name = written.partition(":")
    return KeySource(kind, name)


def read_keys(source: KeySource, environment: Mapping[str, str] = os.environ) -> list[TextKey]:
    """The keys of a source; the last one writes. Raises `TextKeyError`, which never shows a key."""
    if source.kind == "env":
        content = environment.get(source.name, "")
        if not content.strip():
            raise TextKeyError(f"{source.describe()}, which holds the keys of texts, is not set")
    else:
        try:
            content = Path(source.name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise TextKeyError(
                f"{source.describe()}, which holds the keys of texts, cannot be read: {reason}; "
                "'thrifty encryption new-key --file FILE' makes one"
            ) from None
    lines = [line.partition("#")[0].strip() for line in content.replace(",", "\n").splitlines()]
    keys = [_parse_key(line, source) for line in lines if line]
    if not keys:
        raise TextKeyError(
            f"{source.describe()} holds no key; 'thrifty encryption new-key' makes one"
        )
    return keys


def make_key() -> str:
    """A new key as a line of a key file."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _parse_key(line: str, source: KeySource) -> TextKey:
    try:
        data = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != KEY_BYTES:
        raise TextKeyError(
            f"{source.describe()} holds a line that is no key: a key is {KEY_BYTES} random bytes in "
            "base64 (thrifty encryption new-key)"
        )
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError:
        raise TextKeyError(NEEDED) from None
    ident = hashlib.sha256(b"thrifty-text-key:" + data).hexdigest()[:ID_CHARS]
    return TextKey(ident, AESGCM(data))


class TextKeys:
    """The keys of one database, read when they are first needed and again when they change.
    Thread-safe.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        # The registry below holds this object as long as the engine's dialect is there.
        self._engine = weakref.ref(engine)
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at_s: float | None = None
        self._writer: TextKey | None = None
        self._known: dict[str, TextKey] = {}
        self._fault: str | None = None
        self._said: set[str] = set()

    def refresh(self, *, within_s: float = FRESH_S) -> None:
        """Read the place of the keys and the keys, unless that was done within so many seconds.
        Raises `SQLAlchemyError` where the database cannot be read.
        """
        with self._lock:
            at_s = self._clock()
            if self._read_at_s is not None and at_s - self._read_at_s < within_s:
                return
            engine = self._engine()
            assert engine is not None
            with engine.connect() as connection:
                rows = connection.execute(text("SELECT source, writes FROM text_keys")).all()
            self._writer, self._fault = None, None
            known: dict[str, TextKey] = {}
            for row in rows:
                try:
                    keys = read_keys(parse_source(row.source))
                except TextKeyError as error:
                    if row.writes:
                        self._fault = str(error)
                    continue
                known.update((key.id, key) for key in keys)
                if row.writes:
                    self._writer = keys[-1]
            # What was known stays: a file may be away for a moment.
            self._known |= known
            self._read_at_s = at_s

    @property
    def writer(self) -> str | None:
        """The id of the key that writes; None where texts are written plain. Raises `TextKeyError`
        where they should be encrypted and cannot be, and `SQLAlchemyError`.
        """
        self.refresh()
        if self._fault is not None:
            raise TextKeyError(self._fault)
        return None if self._writer is None else self._writer.id

    def knows(self, ident: str) -> bool:
        """Whether there is a key of that id. Raises `SQLAlchemyError`."""
        self.refresh()
        return ident in self._known

    def seal(self, plain: str, place: str) -> str:
        """What is stored for a text. Raises `TextKeyError`."""
        self.refresh()
        if self._fault is not None:
            raise TextKeyError(self._fault)
        if self._writer is None:
            return f"{_PLAIN}{plain}" if plain.startswith(MARK) else plain
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._writer.cipher.encrypt(nonce, plain.encode(), place.encode())
        return f"{SEALED}{self._writer.id}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, stored: str, place: str) -> str:
        """The text that was stored; empty where it cannot be decrypted, which is counted."""
        if stored.startswith(_PLAIN):
            return stored.removeprefix(_PLAIN)
        ident, _, data = stored.removeprefix(SEALED).partition(":")
        try:
            self.refresh()
            if ident not in self._known:
                self.refresh(within_s=1.0)  # another process may use a new key already
        except SQLAlchemyError:
            log.debug("the place of the keys cannot be read", exc_info=True)
        key = self._known.get(ident)
        if key is None:
            return self._miss(
                ident, f"its key {ident} is missing; 'thrifty encryption status' says more"
            )
        try:
            packed = base64.b64decode(data, validate=True)
            opened: bytes = key.cipher.decrypt(
                packed[:_NONCE_BYTES], packed[_NONCE_BYTES:], place.encode()
            )
            return opened.decode()
        except Exception:  # the library's own kinds among them
            return self._miss(ident, "it was changed, or moved from another column")

    def _miss(self, ident: str, why: str) -> str:
        unreadable[ident] += 1
        if ident not in self._said and len(self._said) < 100:
            self._said.add(ident)
            log.warning("an encrypted text cannot be read, and others like it: %s", why)
        return ""


_keys: weakref.WeakKeyDictionary[Dialect, TextKeys] = weakref.WeakKeyDictionary()


def watch_engine(engine: Engine) -> TextKeys:
    """Make the keys of a database available to its columns."""
    made = TextKeys(engine)
    _keys[engine.dialect] = made
    return made


class SealedText(TypeDecorator[str]):
    """A text column whose values are encrypted where the spec asks for it. `place` is its name."""

    impl = Text
    cache_ok = True

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self.place = place

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is stored. Raises `TextKeyError`."""
        keys = _keys.get(dialect)
        return keys.seal(value, self.place) if value and keys is not None else value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """The text."""
        keys = _keys.get(dialect)
        if not value or keys is None or not value.startswith(MARK):
            return value
        return keys.open(value, self.place)
