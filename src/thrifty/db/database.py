"""Opens databases: pragmas, migrations, and detection of a deleted database file.

SQLite runs in WAL mode, so that readers and the one writer of each process do not wait for each
other, with a busy timeout for concurrent writes of two processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from thrifty.db.sealed_text import watch_engine
from thrifty.errors import BadDataError, DatabaseError, TextKeyError
from thrifty.files import replace_atomically
from thrifty.home import make_private_folder

BUSY_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5
MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0025"
"""The newest migration; a test compares it with the folder."""


class Database:
    """One database. Thread-safe, as SQLAlchemy's engines are."""

    def __init__(self, url: URL, engine: Engine) -> None:
        self.url = url
        self.engine = engine
        self.text_keys = watch_engine(engine)
        """The keys of encrypted texts."""
        self._file = (
            Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        )
        self._inode = self._read_inode()

    @property
    def file(self) -> Path | None:
        """The database's file; None if it is a server."""
        return self._file

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is embedded."""
        return self._file is not None

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction.

        Raises `BadDataError` if the database refuses a value, and `DatabaseError` if it is
        unavailable, full or locked, so that the same transaction may succeed later.
        """
        self.require_file()
        try:
            with self.engine.begin() as connection:
                yield connection
        except PoolTimeoutError as error:
            raise DatabaseError(
                f"the database {self.safe_url} failed: all connections are in use"
            ) from error
        except (StatementError, UnicodeEncodeError, OverflowError) as error:
            if isinstance(error, StatementError) and isinstance(error.orig, TextKeyError):
                raise error.orig from None
            name, reason = self.safe_url, _reason(error)
            if _is_bad_data(error):
                raise BadDataError(f"the database {name} refuses a value: {reason}") from error
            raise DatabaseError(f"the database {name} failed: {reason}") from error

    def file_is_gone(self) -> bool:
        """Whether the file was deleted or replaced since it was opened."""
        return self._file is not None and self._read_inode() != self._inode

    def require_file(self) -> None:
        """Raise `DatabaseError` if the opened file no longer exists.

        SQLite would continue to write to the deleted file, and everything would be lost silently.
        """
        if self.file_is_gone():
            raise DatabaseError(f"the database file {self._file} was deleted or replaced")

    def recover(self) -> bool:
        """Reopen a file that has reappeared under the same name; returns whether there was one."""
        if self._file is None or not self.file_is_gone() or not self._file.exists():
            return False
        self.reopen()
        return True

    def reopen(self) -> None:
        """Open the file that exists now."""
        self.engine.dispose()
        self._inode = self._read_inode()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _read_inode(self) -> int | None:
        if self._file is None:
            return None
        try:
            return self._file.stat().st_ino
        except OSError:
            return None


def open_database(url: str, *, migrate: bool, create: bool = False) -> Database:
    """Open the database at a SQLAlchemy URL; with `migrate`, update its tables first; with
    `create`, make them where there are none.

    Raises `DatabaseError`, whose message names the next step.
    """
    parsed = _parse_url(url)
    database = Database(parsed, _create_engine(parsed, create=migrate or create))
    try:
        if migrate or (create and _is_empty(database)):
            _migrate(database)
        else:
            _require_current(database)
    except SQLAlchemyError as error:
        database.close()
        raise DatabaseError(
            f"the database {database.safe_url} cannot be used: {_reason(error)}"
        ) from None
    database.reopen()
    return database


@contextlib.contextmanager
def look_at_database(url: str, *, in_use: bool) -> Iterator[Database | None]:
    """Open the database without changing it; None if it does not exist or has tables of an older
    release. Raises `DatabaseError`.

    SQLite checkpoints its write-ahead log when the last connection closes. A file that no process
    uses is therefore copied with its log, and the copy is opened. `in_use` tells that another of
    our processes has the file open.
    """
    parsed = _parse_url(url)
    file = Path(parsed.database) if parsed.database else None
    with contextlib.ExitStack() as stack:
        if parsed.get_backend_name() == "sqlite" and file is not None:
            if not file.exists():
                yield None
                return
            if not in_use:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for suffix in ("", "-wal"):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(f"{file}{suffix}", folder / f"{file.name}{suffix}")
                url = f"sqlite:///{folder / file.name}"
        database = _open_as_it_is(url)
        stack.callback(database.close)
        with database.engine.connect() as connection:
            revision = _read_revision(connection)
        if revision is not None and revision > HEAD:
            raise DatabaseError(
                f"the database {database.safe_url} was made by a newer Thrifty (revision "
                f"{revision}); upgrade this one"
            )
        yield database if revision == HEAD else None


def _open_as_it_is(url: str) -> Database:
    """Open the database, whatever the revision of its tables."""
    parsed = _parse_url(url)
    database = Database(parsed, _create_engine(parsed, create=False))
    try:
        with database.engine.connect():
            return database
    except SQLAlchemyError as error:
        database.close()
        raise DatabaseError(
            f"the database {database.safe_url} cannot be used: {_reason(error)}"
        ) from None


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError(
            "the database URL is not valid; use sqlite:////path/file.db or "
            "postgresql+psycopg://user:password@host/name"
        ) from None
    if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def _create_engine(url: URL, *, create: bool) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database:
            raise DatabaseError("an SQLite database needs a file: sqlite:////path/file.db")
        path = Path(url.database)
        if create:
            make_private_folder(path.parent)
        elif not path.exists():
            raise DatabaseError(f"the database {path} does not exist; 'thrifty up' creates it")
        engine = create_engine(
            url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
        )
        event.listen(engine, "connect", _set_pragmas)
        return engine
    if backend != "postgresql":
        raise DatabaseError(f"the database {backend!r} is not supported; use sqlite or postgresql")
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=3,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
        )
    except (NoSuchModuleError, ModuleNotFoundError):
        raise DatabaseError(
            "PostgreSQL needs its driver: pip install 'thrifty[postgres]'"
        ) from None


def _set_pragmas(connection: sqlite3.Connection, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={round(BUSY_TIMEOUT_S * 1000)}",
        "foreign_keys=ON",
        "journal_size_limit=67108864",
        # Deleted rows are overwritten with zeros: what was erased is in no file.
        "secure_delete=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _read_revision(connection: Connection) -> str | None:
    try:
        with connection.begin_nested():
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except SQLAlchemyError:
        return None


def _is_empty(database: Database) -> bool:
    with database.engine.connect() as connection:
        return _read_revision(connection) is None


def _require_current(database: Database) -> None:
    with database.engine.connect() as connection:
        revision = _read_revision(connection)
    if revision != HEAD:
        raise DatabaseError(
            f"the database {database.safe_url} is at revision {revision}, but this Thrifty needs "
            f"{HEAD}; run 'thrifty up' once to update it"
        )


def _migrate(database: Database) -> None:
    with _migration_lock(database):
        with database.engine.connect() as connection:
            revision = _read_revision(connection)
        if revision == HEAD:
            return
        if revision is not None and revision > HEAD:
            raise DatabaseError(
                f"the database {database.safe_url} was made by a newer Thrifty (revision "
                f"{revision}); upgrade this one"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with begin_migration(database) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@contextlib.contextmanager
def begin_migration(database: Database) -> Iterator[Connection]:
    """A transaction that covers changes of tables.

    SQLite's driver begins transactions only before changes of rows, so that every change of a table
    would be committed by itself, and an interrupted migration could not be repeated.
    """
    with database.engine.connect() as connection:
        connection.detach()  # the pool must not get the changed connection
        if database.is_sqlite:
            driver: Any = connection.connection.dbapi_connection
            driver.isolation_level = None
            event.listen(connection, "begin", _begin_immediately)
        with connection.begin():
            yield connection


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextlib.contextmanager
def _migration_lock(database: Database) -> Iterator[None]:
    """A lock that lets one process migrate at a time."""
    if database.file is None:
        with database.engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_lock(7471839)"))
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(7471839)"))
        return
    descriptor = os.open(f"{database.file}.migrating", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_bad_data(error: Exception) -> bool:
    """Whether the error is about the values, not about the database."""
    if not isinstance(error, DBAPIError):
        return True  # the driver could not encode them
    if isinstance(error, (DataError, IntegrityError)):
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return bool(state[:2] == "54")  # a program limit, such as the size of an index entry
    return str(error.orig).startswith(("malformed JSON", "Error binding parameter"))


def _reason(error: Exception) -> str:
    inner = getattr(error, "orig", None) or error
    return str(inner).strip().partition("\n")[0] or type(inner).__name__


def rescue_file(database: Database, connection: sqlite3.Connection) -> None:
    """Restore a deleted SQLite file from a connection that still has it open.

    The copy is written beside it and renamed into place. A write-ahead log of the deleted file is
    removed first, because SQLite would replay it into the new one.
    """
    path = database.file
    assert path is not None
    with replace_atomically(path) as copy:
        target = sqlite3.connect(copy)
        try:
            connection.backup(target)
        finally:
            target.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
