"""The process of a gateway worker: assembles the parts, listens, and drains when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
from pathlib import Path

from thrifty.api.services import ApiServices
from thrifty.errors import FleetError
from thrifty.fleet.handover import ListenerOffer
from thrifty.home import Home
from thrifty.http.process import ADDRESS_IN_USE, report_error, run_process
from thrifty.http.server import HttpServer
from thrifty.http.tls import ServerTls
from thrifty.worker.assemble import Secrets, assemble
from thrifty.worker.settings import GatewaySettings

log = logging.getLogger(__name__)

IDLE_GRACE_S = 1.0
"""By then a client that sends requests one after another on a connection has sent its next one,
even on a busy machine, and the response tells it to reconnect."""
GC_THRESHOLD = 20_000
"""Container objects that are allocated before the garbage collector looks at the young ones. A
request in progress has hundreds, and reference counts free nearly all of them."""
SWITCH_INTERVAL_S = 0.0005
"""The threads of the log writer and the table reader yield this fast (Python's default: 5 ms)."""


def run_worker(settings: GatewaySettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
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

    def make_services() -> ApiServices:
        # Imported on first use of the management API: planning loads every engine.
        from thrifty.worker.home_services import make_home_services

        return make_home_services(secrets.database_url, Home(Path(settings.home)))

    async with assemble(settings, secrets, make_services if settings.home else None) as parts:
        offer = _offer_listeners(settings)
        try:
            own_url, url = await _listen(parts.server, settings)
        except OSError as error:
            report_error(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
            return ADDRESS_IN_USE
        log.info("listening on %s", url)
        _spare_garbage_collector()
        if settings.ready_fd is not None:
            _tell_ready(settings.ready_fd, own_url)
        if parts.batches is not None:
            parts.batches.runner.start()
        await stopping.wait()
        log.info("draining")
        if offer is not None:
            offer.close()
        cut = await parts.drain(settings.drain_timeout_s, IDLE_GRACE_S)
        if cut:
            log.warning("%d requests were cut off after %.0f s", cut, settings.drain_timeout_s)
    return 0


def _offer_listeners(settings: GatewaySettings) -> ListenerOffer | None:
    """Offer what this worker listens on to the controller after this one."""
    if not settings.home or not settings.listen_fds:
        return None
    try:
        return ListenerOffer(
            Home(Path(settings.home)).listeners_of(settings.id), settings.listen_fds
        )
    except FleetError as error:
        log.warning("the next controller cannot take over the listening sockets: %s", error)
        return None


def _tell_ready(descriptor: int, url: str) -> None:
    """Write this worker's own URL to the controller's pipe."""
    # A controller that was killed meanwhile does not read it.
    with contextlib.suppress(BrokenPipeError), open(descriptor, "w") as pipe:
        pipe.write(f"{url}\n")


def _spare_garbage_collector() -> None:
    """Exempt what was made at start from garbage collection, and collect the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


async def _listen(server: HttpServer, settings: GatewaySettings) -> tuple[str, str]:
    """Listen on this worker's own address and on the shared one; returns both URLs."""
    own_port = await server.start("127.0.0.1", 0)
    tls = None
    if settings.tls is not None:
        tls = ServerTls(Path(settings.tls.cert), Path(settings.tls.key))
    host, port = settings.host, settings.port
    if not settings.listen_fds:
        port = await server.start(host, port, reuse_port=True, tls=tls)
    for descriptor in settings.listen_fds:
        await server.start(host, port, sock=socket.socket(fileno=descriptor), tls=tls)
    scheme = "http" if tls is None else "https"
    return f"http://127.0.0.1:{own_port}", f"{scheme}://{host}:{port}"
