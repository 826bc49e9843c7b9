"""`/v1/files` and `/v1/batches`, as OpenAI has them. A tenant sees its own and nobody else's.

This module says who asks and which page that is; the pages are `files_api` and `batches_api`.
Nothing here is on the path of a request to a model: the database and the disk are waited for, on a
few threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from thrifty.batches.api_parts import Threads
from thrifty.batches.batches_api import BatchesApi
from thrifty.batches.files_api import FilesApi
from thrifty.batches.settings import BatchSettings
from thrifty.batches.storage import Storage
from thrifty.db import Database
from thrifty.db.keys import Key, Role
from thrifty.errors import DatabaseError
from thrifty.gateway.authenticate import UnknownKey, authenticate, authenticate_late
from thrifty.gateway.table import RoutingTable
from thrifty.gateway.table_reader import TableReader
from thrifty.http.server import Exchange
from thrifty.http.spool import Spool, no_room
from thrifty.openai.errors import NOT_FOUND, WireError, unavailable

BATCH_PATHS = ("/v1/files", "/v1/batches")

_FILE_PATH = re.compile(r"/v1/files/([^/]{1,128})(/content)?")
_BATCH_PATH = re.compile(r"/v1/batches/([^/]{1,128})(/cancel)?")
_CALLERS = frozenset({Role.USER, Role.ADMIN})


class BatchPages:
    """Answers requests about files and batches."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        reader: TableReader,
        database: Database,
        storage: Storage,
        settings: BatchSettings,
        max_body_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self._table = table
        self._reader = reader
        self._storage = storage
        self._settings = settings
        self._max_body_bytes = max_body_bytes
        self._threads = Threads()
        self._files = FilesApi(
            database=database, storage=storage, settings=settings, threads=self._threads
        )
        self._batches = BatchesApi(
            database=database, settings=settings, threads=self._threads, wake=wake
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def open_spool(self, exchange: Exchange) -> Spool | None:
        """Have an upload go to disk. Strangers are refused before they send it."""
        if exchange.method != "POST":
            return None
        limit, name = self._settings.max_file_bytes + 65_536, "batches.max_file"
        try:
            authenticate(exchange, self._table, _CALLERS)
        except UnknownKey:
            # Made a moment ago, perhaps; a small body may wait for the next look at the keys.
            limit, name = self._max_body_bytes, "limits.max_body"
        return Spool(self._storage.folder, limit, name)

    async def answer(self, exchange: Exchange) -> None:
        """Answer, or raise a `WireError`."""
        key = await authenticate_late(exchange, self._table, self._reader, _CALLERS)
        tenant = key.tenant if key is not None else ""
        try:
            await self._answer(exchange, key, tenant)
        except DatabaseError:
            raise unavailable(
                "the database is away; try again soon", "database_away", 5.0
            ) from None
        except OSError as error:
            raise no_room(error) from None

    async def _answer(self, exchange: Exchange, key: Key | None, tenant: str) -> None:
        path = exchange.path
        if path == "/v1/files":
            await self._files.answer(exchange, tenant)
        elif path == "/v1/batches":
            await self._batches.answer(exchange, key, tenant)
        elif match := _FILE_PATH.fullmatch(path):
            await self._files.answer_one(exchange, tenant, match[1], content=bool(match[2]))
        elif match := _BATCH_PATH.fullmatch(path):
            await self._batches.answer_one(exchange, tenant, match[1], cancel=bool(match[2]))
        else:
            raise WireError(
                404, f"There is nothing at {path[:100]}.", type=NOT_FOUND, code="unknown_path"
            )
