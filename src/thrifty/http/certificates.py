"""Certificates that are read again when their files change, and those of fleets.

A fleet beyond loopback may have certificates of its own: its replicas prove to be replicas of this
fleet, and its gateways and controllers to be its gateways. An authority of the fleet vouches for both,
and for nobody else. Addresses of replicas come and go, so that certificates name the part that somebody
plays and not where he is. `VARIABLE` names the folder with a process's own certificate:

    ca.crt                        whom to believe: one authority, or two while one follows the other
    gateway.crt, gateway.key      at gateways and controllers
    replica.crt, replica.key      at replicas
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from thrifty.errors import ThriftyError

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""How often the files are looked at."""
VARIABLE = "THRIFTY_FLEET_TLS"
AUTHORITY = "ca.crt"
GATEWAY, REPLICA = "gateway", "replica"
"""The parts that a certificate is for, and the stems of its files."""
_DOMAIN = "thrifty-fleet.internal"

_Stamp = tuple[tuple[int, int, int, int], ...]


def name_part(part: str) -> str:
    """The DNS name in the certificate of a part. No server has it: it stands for the part."""
    return f"{part}.{_DOMAIN}"


class Reloaded:
    """A context that is made anew when its files change.

    A new one is made aside, so that broken files (half written, a key that does not match) leave the
    old one in use.
    """

    def __init__(
        self, files: Sequence[Path], make: Callable[[], ssl.SSLContext], what: str
    ) -> None:
        """`what` is how messages call the files. Raises `ThriftyError` where they cannot be used."""
        self._files = files
        self._make = make
        self._what = what
        self._stamp = self._read_stamp()
        self._looked_s = time.monotonic()
        try:
            self.context = make()
        except (OSError, ValueError) as error:
            raise ThriftyError(self._explain(error)) from None

    def refresh(self) -> ssl.SSLContext:
        """The newest context; the files are looked at about once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= CHECK_INTERVAL_S:
            self._looked_s = now_s
            self.reload_if_changed()
        return self.context

    def reload_if_changed(self) -> None:
        """Make the context again if the files have changed. Blocks."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.context = self._make()
        except (OSError, ValueError) as error:
            log.error("%s; the certificate from before stays in use", self._explain(error))
        else:
            log.info("a new certificate was read from %s", self._files[0])

    def _read_stamp(self) -> _Stamp:
        """What tells one state of the files from another."""
        stamps = []
        for path in self._files:
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
            missing = [str(path) for path in self._files if not os.access(path, os.R_OK)]
            why = f"{' and '.join(missing) or 'they'} cannot be read: {error.strerror}"
        files = " and ".join(map(str, self._files))
        return f"{self._what}: {files} cannot be used: {why}"


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Load a certificate and its key. Raises `OSError`, `ValueError`."""
    # Without a function for the password, OpenSSL would ask for it on the terminal.
    context.load_cert_chain(cert, key, password=_refuse_password)


def _refuse_password() -> str:
    raise ValueError("the key is encrypted")


def find_folder() -> Path | None:
    """The folder that `VARIABLE` names; None: this process has no certificate of a fleet."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else None


def load_gateway_side() -> Reloaded:
    """How this process connects to replicas of its fleet. Raises `ThriftyError` where it has no
    certificate for that.
    """
    folder = find_folder()
    if folder is None:
        raise ThriftyError(
            f"the replica asks for a certificate of its fleet, and {VARIABLE} names no folder with one "
            "(thrifty certificates make FOLDER)"
        )
    return _load_gateway_side(folder)


@cache
def _load_gateway_side(folder: Path) -> Reloaded:
    authority, cert, key = find_files(folder, GATEWAY)

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(authority)
        load_pair(context, cert, key)
        return context

    return Reloaded((cert, key, authority), make, VARIABLE)


def find_files(folder: Path, part: str) -> tuple[Path, Path, Path]:
    """The authority, the certificate and the key of a part."""
    return folder / AUTHORITY, folder / f"{part}.crt", folder / f"{part}.key"
