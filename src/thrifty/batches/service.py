"""Assembles batch processing for one gateway worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from thrifty.batches.api import BatchPages
from thrifty.batches.dispatch import Dispatcher, Run
from thrifty.batches.runner import BatchRunner
from thrifty.batches.settings import BatchSettings
from thrifty.batches.storage import Storage
from thrifty.db import Database
from thrifty.gateway.forwarding.forward import Forwarder
from thrifty.gateway.state.table import RoutingTable
from thrifty.http.same_origin import SameOrigin
from thrifty.http.upload import OpenSpool
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.conversations import Conversations


@dataclass(frozen=True)
class Batches:
    """The handlers, the runner and the dispatcher of batches."""

    pages: BatchPages
    runner: BatchRunner
    dispatcher: Dispatcher

    @property
    def spools(self) -> dict[str, OpenSpool]:
        """The paths whose bodies are spooled to disk."""
        return {"/v1/files": self.pages.open_spool}


def make_batches(
    *,
    database: Database,
    table: RoutingTable,
    forwarder: Forwarder,
    metrics: GatewayMetrics,
    run: Run,
    settings: BatchSettings,
    max_body_bytes: int,
    conversations: Conversations,
    same_origin: SameOrigin,
) -> Batches:
    """Assemble the parts; `runner.start` starts running batches. `run` processes a call on the
    request path. Raises `ThriftyError` if the folder cannot be created.
    """
    storage = Storage(Path(settings.folder))
    dispatcher = Dispatcher(run, table, forwarder, metrics, settings.governor, conversations)
    runner = BatchRunner(
        database=database,
        storage=storage,
        table=table,
        dispatcher=dispatcher,
        metrics=metrics,
        settings=settings,
        max_line_bytes=max_body_bytes,
    )
    pages = BatchPages(
        table=table,
        database=database,
        storage=storage,
        settings=settings,
        max_body_bytes=max_body_bytes,
        wake=runner.wake,
        same_origin=same_origin,
    )
    return Batches(pages, runner, dispatcher)
