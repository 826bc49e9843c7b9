"""`/v1/files` and `/v1/batches`, as OpenAI has them. A tenant sees its own and nobody else's.

This module is their table of routes; what answers is in `files_api` and `batches_api`.
Nothing here is on the path of a request to a model: the database and the disk are waited for, on a
few threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from thrifty.batches.api_parts import Threads
from thrifty.batches.batches_api import BatchesApi
from thrifty.batches.files_api import FilesApi
from thrifty.batches.settings import BatchSettings
from thrifty.batches.storage import Storage
from thrifty.db import Database
from thrifty.db.keys import Key
from thrifty.errors import DatabaseError
from thrifty.gateway.admission.authenticate import UnknownKey, authenticate
from thrifty.gateway.app.endpoints import Answer, OwnRoute
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.server import Exchange
from thrifty.http.spool import Spool, no_room
from thrifty.openai.errors import unavailable
from thrifty.types import Role

_CALLERS = Role.USER.holders()


class BatchPages:
    """Answers requests about files and batches."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        database: Database,
        storage: Storage,
        settings: BatchSettings,
        max_body_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self._table = table
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

    def routes(self) -> list[OwnRoute]:
        """What it answers."""
        files, batches = self._files, self._batches
        return [
            self._route("GET", "/v1/files", files.list_files, "the files"),
            self._route("POST", "/v1/files", files.create, "upload a file"),
            self._route("GET", "/v1/files/{file}", files.show, "one file"),
            self._route("DELETE", "/v1/files/{file}", files.delete, "delete a file"),
            self._route("GET", "/v1/files/{file}/content", files.send_content, "a file's content"),
            self._route("GET", "/v1/batches", batches.list_batches, "the batches"),
            self._route("POST", "/v1/batches", batches.create, "begin a batch"),
            self._route("GET", "/v1/batches/{batch}", batches.show, "one batch"),
            self._route("POST", "/v1/batches/{batch}/cancel", batches.cancel, "cancel a batch"),
        ]

    @staticmethod
    def _route(method: str, path: str, handler: Answer, summary: str) -> OwnRoute:
        async def answer(
            exchange: Exchange, key: Key | None, parameters: Mapping[str, str]
        ) -> None:
            try:
                await handler(exchange, key, parameters)
            except DatabaseError:
                raise unavailable(
                    "the database is away; try again soon", "database_away", 5.0
                ) from None
            except OSError as error:
                raise no_room(error) from None

        return OwnRoute(method, path, Role.USER, answer, summary)
