"""Pseudonyms of persons: what stands for an end user where the user's name must not stand.

A pseudonym is a keyed hash of tenant and user. Whoever holds the service's secret can tell that two
of them are the same person, and whether one is a given person; nobody else can.
"""

from __future__ import annotations

import base64
from hashlib import blake2b

from thrifty.db.database import Database
from thrifty.db.secrets import read_secret

SECRET = "subjects"  # noqa: S105


class Subjects:
    """Makes pseudonyms with the secret of one service."""

    def __init__(self, secret: bytes) -> None:
        self._hash = blake2b(key=secret, digest_size=10, person=b"subject")

    def name(self, tenant: str | None, user: str) -> str:
        """The pseudonym of a tenant's end user, such as `u-4k0m...`."""
        state = self._hash.copy()
        tenant_bytes = (tenant or "").encode("utf-8", "surrogatepass")
        state.update(b"%d\0%b" % (len(tenant_bytes), tenant_bytes))
        state.update(user.encode("utf-8", "surrogatepass"))
        return f"u-{base64.b32encode(state.digest()).decode().lower()}"


def open_subjects(database: Database) -> Subjects:
    """The pseudonyms of the service with this database. Raises `DatabaseError`."""
    return Subjects(read_secret(database, SECRET))
