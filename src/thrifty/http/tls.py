"""The server's side of TLS: a certificate and key that are read again when their files change.

Each handshake uses the newest pair that could be loaded. Where an authority is given, clients may show
a certificate of it. Whoever shows one that it did not sign is refused in the handshake; whether one is
needed is up to the handler (`Exchange.peer_names`), because probes of platforms have none.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from thrifty.errors import ThriftyError
from thrifty.http.certificates import (
    CHECK_INTERVAL_S,
    REPLICA,
    VARIABLE,
    Reloaded,
    find_files,
    find_folder,
    load_pair,
)

__all__ = ["CHECK_INTERVAL_S", "ServerTls", "load_replica_side"]


class ServerTls:
    """A certificate with its key. `context` is for the listening socket."""

    def __init__(
        self, cert: Path, key: Path, clients: Path | None = None, *, what: str = "gateway.tls"
    ) -> None:
        """`clients` is the authority of clients' certificates, and `what` how messages call the files.
        Raises `ThriftyError` where they cannot be used.
        """

        def make() -> ssl.SSLContext:
            context = _make_context(clients)
            load_pair(context, cert, key)
            return context

        files = (cert, key) if clients is None else (cert, key, clients)
        self._newest = Reloaded(files, make, what)
        self.context = _make_context(clients)
        # Called for every handshake, also for clients that name no server.
        self.context.sni_callback = self._choose

    def reload_if_changed(self) -> None:
        """Load the files again if they have changed. Blocks; call it about every second from one
        thread at a time.
        """
        self._newest.reload_if_changed()

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        # Authorities of clients are looked up in it, too.
        connection.context = self._newest.context


def load_replica_side() -> ServerTls | None:
    """How a replica of a fleet with certificates listens; None where `VARIABLE` names no folder.
    Raises `ThriftyError`.
    """
    folder = find_folder()
    if folder is None:
        return None
    authority, cert, key = find_files(folder, REPLICA)
    if not cert.exists():
        raise ThriftyError(f"{VARIABLE}: {folder} has no certificate of a replica ({cert.name})")
    return ServerTls(cert, key, authority, what=VARIABLE)


def _make_context(clients: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if clients is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(clients)
    return context
