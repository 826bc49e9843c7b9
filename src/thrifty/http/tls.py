"""The server's side of TLS: a certificate and key that are read again when their files change.

Each handshake uses the newest pair that could be loaded. A new pair is loaded into a context of its
own, so that a broken one (half written, a key that does not match) leaves the old one as it is.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from thrifty.errors import ThriftyError

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""How often the files are looked at."""

_Stamp = tuple[tuple[int, int, int, int], ...]


class ServerTls:
    """A certificate with its key. `context` is for the listening socket."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises `ThriftyError` where the files cannot be used."""
        self._cert = cert
        self._key = key
        self._stamp = self._read_stamp()
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            raise ThriftyError(self._explain(error)) from None
        self.context = _make_context()
        # Called for every handshake, also for clients that name no server.
        self.context.sni_callback = self._choose

    def reload_if_changed(self) -> None:
        """Load the files again if they have changed. Blocks; call it about every second from one
        thread at a time.
        """
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            log.error("%s; the certificate from before stays in use", self._explain(error))
        else:
            log.info("a new certificate was read from %s", self._cert)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = _make_context()
        # Without a function for the password, OpenSSL would ask for it on the terminal.
        context.load_cert_chain(self._cert, self._key, password=_refuse_password)
        return context

    def _read_stamp(self) -> _Stamp:
        """What tells one state of the files from another."""
        stamps = []
        for path in (self._cert, self._key):
            try:
                found = os.stat(path)
            except OSError:
                stamps.append((0, 0, 0, 0))
            else:
                # The time of the last change of status covers permissions, and tools that preserve
                # the time of the last write.
                stamps.append((found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
        return tuple(stamps)

    def _explain(self, error: OSError | ValueError) -> str:
        if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
            reason = getattr(error, "reason", None) or str(error)
            why = f"they are not a PEM certificate and its unencrypted key ({reason})"
        else:
            missing = [
                str(path) for path in (self._cert, self._key) if not os.access(path, os.R_OK)
            ]
            why = f"{' and '.join(missing) or 'they'} cannot be read: {error.strerror}"
        return f"gateway.tls: {self._cert} and {self._key} cannot be used: {why}"


def _make_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _refuse_password() -> str:
    raise ValueError("the key is encrypted")
