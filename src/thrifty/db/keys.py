"""API keys: created once, shown once, stored as a hash.

A key has 256 random bits, so its plain SHA-256 can be neither reversed nor guessed; a slow password
hash would only slow down every request.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from thrifty.db.audit import record_act
from thrifty.db.changes import note_change
from thrifty.db.database import Database
from thrifty.db.tables import keys
from thrifty.errors import NameTakenError, ThriftyError
from thrifty.types import Role as Role

PREFIX = "sk-thrifty-"
MIN_SECRET = 32
"""Characters of a secret that others made."""
KEPT_BY = "environment"
"""Who, for the audit log, has a secret of others kept."""
MAX_LIMIT = 1e15
MAX_DEPLOYMENTS = 100
LONGEST_S = 100 * 365 * 86400.0
"""The longest time that a key or an earlier secret stays good."""
_ROLES_OF_0_1 = {Role.VIEWER: "monitor", Role.OPERATOR: "user"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class KeyLimits:
    """The limits of a key; None means unlimited. Money is in the currency of the prices."""

    rpm: int | None = None
    """Requests per minute."""
    tpm: int | None = None
    """Tokens per minute, of prompts and answers."""
    concurrency: int | None = None
    """Concurrent requests."""
    budget_day: float | None = None
    """Spend per day (UTC)."""
    budget_month: float | None = None
    """Spend per calendar month (UTC)."""


@dataclass(frozen=True)
class Key:
    """A key, without its secret."""

    id: str
    name: str
    role: Role
    tenant: str
    hash: str
    hint: str
    created_s: float
    revoked_s: float | None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget_day: float | None = None
    budget_month: float | None = None
    deployments: tuple[str, ...] | None = None
    """What it may call, by name; None: everything."""
    expires_s: float | None = None
    """When it ends by itself; None: never."""
    previous_hash: str | None = None
    """The hash of the secret before the last rotation, which is good until `previous_until_s`."""
    previous_until_s: float | None = None

    def may_call(self, deployment: str) -> bool:
        """Whether it may call a deployment."""
        return self.deployments is None or deployment in self.deployments

    def is_over(self, digest: str, now_s: float) -> bool:
        """Whether it has expired, or the secret of this hash was replaced and has."""
        if self.expires_s is not None and self.expires_s <= now_s:
            return True
        return digest != self.hash and (self.previous_until_s or 0.0) <= now_s

    @property
    def limits(self) -> KeyLimits:
        """The limits of the key."""
        return KeyLimits(self.rpm, self.tpm, self.concurrency, self.budget_day, self.budget_month)

    @property
    def limited(self) -> bool:
        """Whether the key has any limit."""
        return not (
            self.rpm is None
            and self.tpm is None
            and self.concurrency is None
            and self.budget_day is None
            and self.budget_month is None
        )


NO_LIMITS = KeyLimits()


@dataclass(frozen=True)
class Scope:
    """What a key may call, and for how long; as `Key.deployments` and `Key.expires_s`."""

    deployments: tuple[str, ...] | None = None
    expires_s: float | None = None


def hash_key(secret: str | bytes) -> str:
    """The hash that is stored for a key."""
    data = secret.encode() if isinstance(secret, str) else secret
    return hashlib.sha256(data).hexdigest()


def create_key(
    database: Database,
    name: str,
    role: str = Role.USER,
    tenant: str | None = None,
    limits: KeyLimits = NO_LIMITS,
    *,
    scope: Scope = Scope(),
    who: str = "",
) -> tuple[Key, str]:
    """Create a key; returns it and its secret, which is not stored. `who` does it, for the audit
    log. Raises `ThriftyError`.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    return _insert_key(database, name, role, tenant, limits, secret, who, scope), secret


def rotate_key(
    database: Database, name: str, keep_s: float = 0.0, *, who: str = ""
) -> tuple[Key, str]:
    """Give a key another secret; returns the key and the secret, which is not stored. The one
    before stays good for `keep_s`. The rest, spend included, stays as it is. Raises `ThriftyError`.
    """
    if not 0 <= keep_s <= LONGEST_S:
        raise ThriftyError("a secret stays good for 100 years at most; give a time such as 24h")
    known = next((key for key in list_keys(database) if key.name == name), None)
    if known is None:
        raise ThriftyError(f"there is no key named {name!r}; 'thrifty keys list' shows all keys")
    secret = PREFIX + secrets.token_urlsafe(32)
    changed = replace(
        known, hash=hash_key(secret), hint=_make_hint(secret), previous_hash=known.hash,
        previous_until_s=time.time() + keep_s,
    )  # fmt: skip
    with database.begin() as connection:
        where = (keys.c.id == known.id) & (keys.c.hash == known.hash)
        if connection.execute(update(keys).where(where).values(_key_row(changed))).rowcount == 0:
            raise ThriftyError(
                f"the key {name!r} was changed by somebody else meanwhile; try again"
            )
        note_change(connection)
        named = {"key": name, "tenant": known.tenant}
        record_act(connection, "key.rotate", who, names=named, keep_s=int(keep_s))
    return changed, secret


def keep_key(database: Database, name: str, role: str, secret: str) -> Key:
    """Have a key of this name with this role and secret, which somebody else made: a secret store,
    say. A key of the name takes the new secret and role; the old secret is refused from then on.
    Raises `ThriftyError`, also where the secret is that of a key that was revoked.
    """
    if len(secret) < MIN_SECRET or not secret.isascii() or not secret.isprintable():
        # Its plain SHA-256 is stored, so it must not be one that can be guessed.
        raise ThriftyError(
            f"the key {name!r} needs a secret of at least {MIN_SECRET} random printable ASCII "
            "characters (openssl rand -hex 32)"
        )
    known = next((key for key in list_keys(database) if key.name == name), None)
    if known is None:
        return _insert_key(database, name, role, None, NO_LIMITS, secret, KEPT_BY)
    changed = replace(known, role=Role(role), hash=hash_key(secret), hint=_make_hint(secret))
    if changed != known:
        with _naming_conflicts(name), database.begin() as connection:
            row = _key_row(changed)
            connection.execute(update(keys).where(keys.c.id == known.id).values(row))
            note_change(connection)
            named = {"key": changed.name, "tenant": changed.tenant}
            record_act(connection, "key.replace", KEPT_BY, names=named, role=changed.role.value)
    return changed


def _insert_key(
    database: Database,
    name: str,
    role: str,
    tenant: str | None,
    limits: KeyLimits,
    secret: str,
    who: str,
    scope: Scope = Scope(),
) -> Key:
    for what, value in (("name", name), ("tenant", tenant)):
        if value is not None and not _NAME.fullmatch(value):
            raise ThriftyError(
                f"{value!r} is not a valid {what}: use 1 to 64 letters, digits, '.', '_', '@' or '-'"
            )
    try:
        role = Role(role)
    except ValueError:
        raise ThriftyError(f"{role!r} is not a role; roles are {', '.join(Role)}") from None
    _check_limits(limits)
    _check_scope(scope, role)
    key = Key(
        id=secrets.token_hex(8),
        name=name,
        role=role,
        tenant=tenant or name,
        hash=hash_key(secret),
        hint=_make_hint(secret),
        created_s=time.time(),
        revoked_s=None,
        **vars(limits),
        **vars(scope),
    )
    with _naming_conflicts(name), database.begin() as connection:
        connection.execute(insert(keys).values(_key_row(key)))
        note_change(connection)
        named = {"key": key.name, "tenant": key.tenant}
        record_act(connection, "key.create", who, names=named, role=key.role.value)
    return key


@contextmanager
def _naming_conflicts(name: str) -> Iterator[None]:
    """Names and secrets are unique, those of revoked keys too."""
    try:
        yield
    except ThriftyError as error:
        if isinstance(error.__cause__, IntegrityError):
            raise NameTakenError(
                f"a key named {name!r}, or with its secret, already exists; choose another name, or "
                f"revoke it first (thrifty keys revoke {name}). A revoked secret cannot come back"
            ) from None
        raise


def _make_hint(secret: str) -> str:
    shown = len(PREFIX) + 4 if secret.startswith(PREFIX) else 4
    return f"{secret[:shown]}..."


def list_keys(database: Database, *, revoked: bool = False) -> list[Key]:
    """All keys, sorted by name; with `revoked`, revoked ones too."""
    query = select(keys).order_by(keys.c.name)
    if not revoked:
        query = query.where(keys.c.revoked_s.is_(None))
    with database.begin() as connection:
        rows = connection.execute(query).mappings().all()
    return [read_key(row) for row in rows]


def read_key(row: Mapping[Any, Any]) -> Key:
    """The key of a row of the table `keys`."""
    values = dict(row)
    operates, names = values.pop("operator"), values["deployments"]
    values["deployments"] = None if names is None else tuple(json.loads(names))
    return Key(**{**values, "role": Role.OPERATOR if operates else Role(values["role"])})


def _key_row(key: Key) -> dict[str, Any]:
    """The row of a key, with a role that version 0.1 knows: it may run at the same time."""
    role = _ROLES_OF_0_1.get(key.role, key.role.value)
    names = None if key.deployments is None else json.dumps(key.deployments)
    operates = key.role is Role.OPERATOR
    return {**vars(key), "role": role, "operator": operates, "deployments": names}


def revoke_key(database: Database, name: str, *, who: str = "") -> None:
    """Revoke a key. Its row stays under another name, because the request log refers to it. `who`
    does it, for the audit log.
    """
    with database.begin() as connection:
        now_s = time.time()
        result = connection.execute(
            update(keys)
            .where(keys.c.name == name, keys.c.revoked_s.is_(None))
            .values(revoked_s=now_s, name=f"{name[:48]}~{secrets.token_hex(4)}")
        )
        note_change(connection)
        if result.rowcount:
            record_act(connection, "key.revoke", who, names={"key": name})
    if result.rowcount == 0:
        raise ThriftyError(f"there is no key named {name!r}; 'thrifty keys list' shows all keys")


def _check_scope(scope: Scope, role: Role) -> None:
    now_s = time.time()
    if scope.expires_s is not None and not now_s < scope.expires_s <= now_s + LONGEST_S:
        raise ThriftyError(
            "a key cannot expire in the past, nor in more than 100 years; give a time such as 90d, or "
            "none for a key that never expires"
        )
    if scope.deployments is None:
        return
    if role is not Role.USER:
        raise ThriftyError(
            f"a key that is bound to deployments calls models and nothing else, so its role is "
            f"'user', not {role.value!r}"
        )
    if not 1 <= len(scope.deployments) <= MAX_DEPLOYMENTS or any(
        not 1 <= len(name) <= 64 for name in scope.deployments
    ):
        raise ThriftyError(
            f"a key may be bound to 1 to {MAX_DEPLOYMENTS} deployments, by their names"
        )


def _check_limits(limits: KeyLimits) -> None:
    for name, value in vars(limits).items():
        if value is None:
            continue
        whole = not name.startswith("budget_")
        least = 1 if whole else 0
        if not least <= value <= MAX_LIMIT:
            what = "a whole number of at least 1" if whole else "an amount of at least 0"
            raise ThriftyError(f"{value!r} is not valid for {name.replace('_', '-')}: use {what}")
