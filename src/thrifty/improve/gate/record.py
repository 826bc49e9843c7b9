"""The record of a gate: all that the verdict rests on, signed by this home.

    gates/<digest>.json    one record
    gates/signing.key      the key, readable by its owner alone

The digest is that of everything that the same models, sets and machine give again: without times,
speeds and the signature. The signature (HMAC-SHA-256 over the whole record) shows that this home
made it and that nobody has changed it since; who has the key can sign, so it proves nothing to
those who do not trust this home.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.errors import ThriftyError
from thrifty.evaluate.windows import digest_file
from thrifty.files import write_atomically
from thrifty.home import Home, make_private_folder

ALGORITHM = "HMAC-SHA256"
KEY_BYTES = 32
NOT_DIGESTED = ("made", "made_by", "speed", "digest", "signature")
"""What may differ between two runs that judge the same."""
MOST_BYTES = 64_000_000


def write_record(home: Home, record: dict[str, Any]) -> Path:
    """Sign a record and store it; returns its path."""
    folder = make_private_folder(home.gates)
    record = {**record, "digest": digest_record(record)}
    key = _load_key(folder)
    record["signature"] = {
        "algorithm": ALGORITHM,
        "key": _name_key(key),
        "value": _sign(record, key),
    }
    path = folder / f"{record['digest'][:24]}.json"
    write_atomically(path, json.dumps(record, indent=2, sort_keys=True), mode=0o600)
    return path


def digest_record(record: dict[str, Any]) -> str:
    """A checksum of what the same inputs give again."""
    kept = {name: value for name, value in record.items() if name not in NOT_DIGESTED}
    return hashlib.sha256(_canonical(kept)).hexdigest()


@dataclass
class Verification:
    """What was found of a record."""

    record: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    """Why it must not be relied on."""
    notes: list[str] = field(default_factory=list)
    """What cannot be looked up here any more."""


def verify_record(home: Home, store: Store, path: Path) -> Verification:
    """Check a record's signature and digest, and that its sets and models are what they were.

    Raises `ThriftyError` for a file that is no record.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ThriftyError(f"{path} is too large to be the record of a gate")
        record = json.loads(path.read_bytes())
        signature = record["signature"]
        given = str(signature["value"])
    except OSError as error:
        raise ThriftyError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ThriftyError(f"{path} is not the record of a gate") from None
    found = Verification(record)
    key_path = home.gates / "signing.key"
    key = key_path.read_bytes() if key_path.exists() else b""
    if not key or signature.get("key") != _name_key(key):
        found.faults.append(
            f"it was signed by the key {signature.get('key')}, which is not that of this home"
        )
    elif signature.get("algorithm") != ALGORITHM or not hmac.compare_digest(
        given, _sign({k: v for k, v in record.items() if k != "signature"}, key)
    ):
        found.faults.append("its signature does not match: the record was changed")
    if record.get("digest") != digest_record(record):
        found.faults.append("its digest does not match its content")
    _check_inputs(record, store, found)
    return found


def _check_inputs(record: dict[str, Any], store: Store, found: Verification) -> None:
    ids = {version.artifact for version in store.versions()}
    for role, model in dict(record.get("models") or {}).items():
        if model and model.get("artifact") not in ids:
            found.notes.append(f"the {role}, {model.get('name')}, is not stored here any more")
    for one in list(record.get("sets") or []):
        path = Path(str(one.get("path", "")))
        if not path.is_absolute():
            continue  # part of Thrifty
        if not path.is_file():
            found.notes.append(f"the set {one.get('name')} is not here any more ({path})")
        elif digest_file(path) != one.get("sha256"):
            found.faults.append(f"the set {one.get('name')} ({path}) has changed since")


def _load_key(folder: Path) -> bytes:
    """The home's key, made at first use."""
    path = folder / "signing.key"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise ThriftyError(
                f"{path} is damaged; remove it, and records are signed anew"
            ) from None
        return key
    with os.fdopen(handle, "wb") as file:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def _name_key(key: bytes) -> str:
    return hashlib.sha256(b"thrifty gate key " + key).hexdigest()[:16]


def _sign(record: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, b"thrifty gate record " + _canonical(record), hashlib.sha256).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
