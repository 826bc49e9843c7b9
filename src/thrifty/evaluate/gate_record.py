"""The record of a gate: all that the verdict rests on, signed by this home.

    gates/<digest>.json    one record
    gates/signing.key      the key, readable by its owner alone

Texts of users are not in it, because it never expires: of what they judged, and of questions out of
built sets, it keeps the numbers of the responses, by which the texts are found while they are kept.

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
from collections.abc import Sequence
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
TRUSTED = "trusted"
"""The metric of what trusted users judged."""
TEXTS = ("question", "against", "candidate")
"""The texts of an example."""


def write_record(home: Home, record: dict[str, Any]) -> Path:
    """Sign a record and store it; returns its path."""
    folder = make_private_folder(home.gates)
    signed = _sign_record(withhold_texts(home, record), _load_key(folder))
    path = folder / f"{signed['digest'][:24]}.json"
    _write(path, signed)
    return path


def withhold_texts(home: Home, record: dict[str, Any]) -> dict[str, Any]:
    """The record without texts of users: of their examples the numbers of responses stay."""
    sets = record.get("sets") or ()
    asked = any(home.may_hold_texts(Path(str(one.get("path", "")))) for one in sets)
    slices = [
        {**one, "examples": _withhold(one["examples"], asked or one["metric"] == TRUSTED)}
        for one in record.get("slices") or ()
    ]
    return {**record, "slices": slices} if slices else record


def _withhold(examples: Sequence[dict[str, Any]], of_users: bool) -> list[dict[str, Any]]:
    kept = (
        {name: one[name] for name in one if name not in TEXTS}
        if of_users or one.get("responses")
        else one
        for one in examples
    )
    return [one for one in kept if any(one.values())]


def withhold_stored(home: Home, path: Path) -> bool:
    """Take texts of users out of a stored record, which earlier releases wrote, and sign it anew
    if its signature was valid; returns whether there were some. Raises `OSError`, and
    `ThriftyError` for a file that is no record.
    """
    record, signature = _read(path)
    try:
        kept = withhold_texts(home, record)
    except (AttributeError, KeyError, TypeError):
        raise ThriftyError(f"{path} is not the record of a gate") from None
    if kept == record:
        return False
    key = _find_key(home)
    if _find_fault(record, signature, key) is None:
        kept = _sign_record(kept, key)
    _write(path, kept)
    return True


def _write(path: Path, record: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(record, indent=2, sort_keys=True), mode=0o600)


def _sign_record(record: dict[str, Any], key: bytes) -> dict[str, Any]:
    signed = {name: value for name, value in record.items() if name != "signature"}
    signed["digest"] = digest_record(signed)
    value = _sign(signed, key)
    return signed | {"signature": {"algorithm": ALGORITHM, "key": _name_key(key), "value": value}}


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
        record, signature = _read(path)
    except OSError as error:
        raise ThriftyError(f"{path} cannot be read: {error.strerror or error}") from None
    found = Verification(record)
    fault = _find_fault(record, signature, _find_key(home))
    if fault is not None:
        found.faults.append(fault)
    if record.get("digest") != digest_record(record):
        found.faults.append("its digest does not match its content")
    _check_inputs(record, store, found)
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stored record and its signature. Raises `OSError` and `ThriftyError`."""
    if path.stat().st_size > MOST_BYTES:
        raise ThriftyError(f"{path} is too large to be the record of a gate")
    try:
        record = json.loads(path.read_bytes())
        signature = dict(record["signature"], value=str(record["signature"]["value"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ThriftyError(f"{path} is not the record of a gate") from None
    return record, signature


def _find_fault(record: dict[str, Any], signature: dict[str, Any], key: bytes) -> str | None:
    """Why a record's signature must not be relied on; None for a valid one."""
    if not key or signature.get("key") != _name_key(key):
        return f"it was signed by the key {signature.get('key')}, which is not that of this home"
    signed = {name: value for name, value in record.items() if name != "signature"}
    if signature.get("algorithm") != ALGORITHM or not hmac.compare_digest(
        signature["value"], _sign(signed, key)
    ):
        return "its signature does not match: the record was changed"
    return None


def _find_key(home: Home) -> bytes:
    """The home's key; empty where it has none yet."""
    path = home.gates / "signing.key"
    return path.read_bytes() if path.exists() else b""


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
