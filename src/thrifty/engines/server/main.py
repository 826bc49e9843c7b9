"""The life of a model server's process: listen, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from thrifty.engines.server import HOST_VARIABLE, KEY_VARIABLE
from thrifty.engines.server.access import check_access, require_key
from thrifty.engines.server.app import ModelServer
from thrifty.errors import EngineError, ThriftyError
from thrifty.http.exchange import Handler
from thrifty.http.origin import FLEET_SCHEME
from thrifty.http.process import ADDRESS_IN_USE, report_error, run_process
from thrifty.http.server import HttpServer, ServerLimits
from thrifty.http.tls import load_replica_side

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64_000_000
"""The gateway in front has the user's limit; this one only bounds what a mistake may cost."""
DRAIN_TIMEOUT_S = 30.0
FAILED_DRAIN_TIMEOUT_S = 1.0


def serve_model(server: ModelServer, port: int) -> int:
    """Serve until SIGTERM or SIGINT, or until the engine is gone; returns the exit status. The
    address and the key come from the environment (`HOST_VARIABLE`, `KEY_VARIABLE`).
    """
    host = os.environ.get(HOST_VARIABLE) or "127.0.0.1"
    key = os.environ.get(KEY_VARIABLE) or None

    async def main(stopping: asyncio.Event) -> int:
        check_access(host, key)
        # A replica that only this machine can reach has no key, and nobody to prove anything to.
        tls = load_replica_side() if key is not None else None
        handle: Handler = server.handle
        if key is not None:
            handle = require_key(handle, key, certificate=tls is not None)
        http = HttpServer(handle, ServerLimits(max_body_bytes=MAX_BODY_BYTES))
        try:
            listening_on = await http.start(host, port, tls=tls)
        except OSError as error:
            report_error(f"cannot listen on {host}:{port}: {error.strerror}")
            return ADDRESS_IN_USE
        scheme = "http" if tls is None else FLEET_SCHEME
        log.info("listening on %s://%s:%d", scheme, host, listening_on)
        failure = await _serve(server, stopping)
        if failure is not None:
            report_error(str(failure))
        cut = await http.drain(DRAIN_TIMEOUT_S if failure is None else FAILED_DRAIN_TIMEOUT_S)
        if cut:
            log.warning("%d requests were cut at the end", cut)
        await server.backend.stop()
        return 0 if failure is None else failure.exit_code

    return run_process(main)


async def _serve(server: ModelServer, stopping: asyncio.Event) -> ThriftyError | None:
    """Load, and serve until told to stop (None) or until the engine fails (why)."""
    started_s = time.monotonic()
    stop = asyncio.ensure_future(stopping.wait())
    loading = asyncio.ensure_future(server.start())
    failing: asyncio.Future[str] | None = None
    try:
        await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return None
        facts = loading.result()
        log.info("ready after %.2f s: %s", time.monotonic() - started_s, facts)
        failing = asyncio.ensure_future(server.backend.wait_failed())
        await asyncio.wait({failing, stop}, return_when=asyncio.FIRST_COMPLETED)
        return EngineError(failing.result()) if failing.done() else None
    except ThriftyError as error:
        return error
    finally:
        for future in (stop, loading, failing):
            if future is not None:
                future.cancel()
