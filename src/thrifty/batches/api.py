"""The routes `/v1/files` and `/v1/batches` of the OpenAI API. A tenant sees only its own entries.

The handlers are in `files_api` and `batches_api`. None of them is on the path of a request to a
model: they wait for the database and the disk on a few threads.
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
from thrifty.http.same_origin import SameOrigin
from thrifty.http.server import Exchange
from thrifty.http.spool import Spool, no_room
from thrifty.openai.errors import explain_database
from thrifty.types import Role

_CALLERS = Role.USER.holders()


class BatchPages:
    """Handles requests about files and batches."""

    def __init__(
        self,
        *,
        table: RoutingTable,
        database: Database,
        storage: Storage,
        settings: BatchSettings,
        max_body_bytes: int,
        wake: Callable[[], None],
        same_origin: SameOrigin,
    ) -> None:
        """`same_origin` keeps web pages of other sites away from the files where no keys exist."""
        self._same_origin = same_origin
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
        """Stop the threads."""
        self._threads.close()

    def open_spool(self, exchange: Exchange) -> Spool | None:
        """Spool an upload to disk. Callers without a valid key are refused before they send it."""
        if exchange.method != "POST":
            return None
        limit, name = self._settings.max_file_bytes + 65_536, "batches.max_file"
        try:
            if authenticate(exchange, self._table, _CALLERS) is None:
                self._same_origin.check_page(exchange)
        except UnknownKey:
            # The key may be new; a small body may be read until the keys have been read again.
            limit, name = self._max_body_bytes, "limits.max_body"
        return Spool(self._storage.folder, limit, name)

    def routes(self) -> list[OwnRoute]:
        """The routes for files and batches."""
        files, batches = self._files, self._batches
        return [
            self._route("GET", "/v1/files", files.list_files, "the files"),
            self._route("POST", "/v1/files", files.create, "upload a file"),
            self._route("GET", "/v1/files/{file}", files.show, "one file"),
            self._route("DELETE", "/v1/files/{file}", files.delete, "delete a file"),
            self._route("GET", "/v1/files/{file}/content", files.send_content, "a file's content"),
            self._route("GET", "/v1/batches", batches.list_batches, "the batches"),
            self._route("POST", "/v1/batches", batches.create, "create a batch"),
            self._route("GET", "/v1/batches/{batch}", batches.show, "one batch"),
            self._route("POST", "/v1/batches/{batch}/cancel", batches.cancel, "cancel a batch"),
        ]

    def _route(self, method: str, path: str, handler: Answer, summary: str) -> OwnRoute:
        async def answer(
            exchange: Exchange, key: Key | None, parameters: Mapping[str, str]
        ) -> None:
            if key is None:
                self._same_origin.check_page(exchange)
            try:
                await handler(exchange, key, parameters)
            except DatabaseError as error:
                raise explain_database(error) from None
            except OSError as error:
                raise no_room(error) from None

        return OwnRoute(method, path, Role.USER, answer, summary)
