"""A gateway worker's process: it assembles its parts, listens, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from pathlib import Path

from thrifty.http.process import ADDRESS_IN_USE, report_error, run_process
from thrifty.http.server import HttpServer
from thrifty.http.tls import ServerTls
from thrifty.worker.assemble import Secrets, assemble
from thrifty.worker.settings import GatewaySettings

log = logging.getLogger(__name__)

IDLE_GRACE_S = 1.0
"""A client that sends its requests one after the other on one connection has sent the next by then,
on a busy machine too, and is told with its answer to come back on another one."""
SWITCH_INTERVAL_S = 0.0005
"""The log writer's and the table reader's threads give way this fast (Python's default is 5 ms)."""


def run_worker(settings: GatewaySettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def main(stopping: asyncio.Event) -> int:
        return await _serve(settings, stopping)

    return run_process(main)


async def _serve(settings: GatewaySettings, stopping: asyncio.Event) -> int:
    secrets = Secrets(
        os.environ[settings.database_url_env],
        os.environ.get(settings.redis_url_env, ""),
        bytes.fromhex(os.environ.get(settings.id_secret_env, "")),
    )
    async with assemble(settings, secrets) as parts:
        try:
            own_url, url = await _listen(parts.server, settings)
        except OSError as error:
            report_error(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
            return ADDRESS_IN_USE
        log.info("listening on %s", url)
        if settings.ready_file is not None:
            _say_ready(Path(settings.ready_file), own_url)
        if parts.batches is not None:
            parts.batches.runner.start()
        await stopping.wait()
        log.info("draining")
        cut = await parts.drain(settings.drain_timeout_s, IDLE_GRACE_S)
        if cut:
            log.warning("%d requests were cut after %.0f s", cut, settings.drain_timeout_s)
    return 0


async def _listen(server: HttpServer, settings: GatewaySettings) -> tuple[str, str]:
    """Listen where it alone is asked, and where all workers are; returns both addresses."""
    own_port = await server.start("127.0.0.1", 0)
    tls = None
    if settings.tls is not None:
        tls = ServerTls(Path(settings.tls.cert), Path(settings.tls.key))
    port = settings.port
    if not settings.listen_fds:
        port = await server.start(settings.host, settings.port, reuse_port=True, tls=tls)
    for descriptor in settings.listen_fds:
        inherited = socket.socket(fileno=descriptor)
        await server.start(settings.host, settings.port, sock=inherited, tls=tls)
    scheme = "http" if tls is None else "https"
    return f"http://127.0.0.1:{own_port}", f"{scheme}://{settings.host}:{port}"


def _say_ready(path: Path, url: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps({"pid": os.getpid(), "url": url}))
    os.replace(beside, path)
