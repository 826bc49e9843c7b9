"""Secrets shared by all processes of a service; the first process that needs one creates it."""

from __future__ import annotations

import os

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from thrifty.db.database import Database
from thrifty.db.tables import secrets

SECRET_BYTES = 32
ID_SECRET = "response_ids"  # noqa: S105
"""The name of the one that signs ids of responses and conversations."""


def read_secret(database: Database, name: str) -> bytes:
    """The secret of that name (32 bytes); created and stored if there is none.

    Every process gets the same one, even if several ask at once. Raises `DatabaseError`.
    """
    with database.begin() as connection:
        return read_secret_in(connection, name)


def read_secret_in(connection: Connection, name: str) -> bytes:
    """As `read_secret`, within a transaction."""
    wanted = select(secrets.c.value).where(secrets.c.name == name)
    value = connection.execute(wanted).scalar()
    if value is None:
        try:
            with connection.begin_nested():
                made = os.urandom(SECRET_BYTES).hex()
                connection.execute(insert(secrets).values(name=name, value=made))
        except IntegrityError:
            pass  # another process was first
        value = connection.execute(wanted).scalar_one()
    return bytes.fromhex(value)
