"""Servers by their URLs: where to connect, and the prefix of each path."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import msgspec

FLEET_SCHEME = "mtls"
"""Of URLs of replicas that show a certificate of their fleet, and ask for one."""


class Origin(msgspec.Struct, frozen=True):
    """A server: where to connect, and the prefix of each path."""

    host: str
    port: int
    tls: bool = False
    base_path: str = ""
    socket: str = ""
    """The path of a Unix socket to connect to, in place of host and port."""
    fleet: bool = False
    """Whether both sides show certificates of their fleet (`http.certificates`)."""

    @property
    def host_header(self) -> bytes:
        """The `Host` header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")

    @property
    def url(self) -> str:
        """The origin as a URL."""
        scheme = FLEET_SCHEME if self.fleet else "https" if self.tls else "http"
        return f"{scheme}://{self.host_header.decode()}{self.base_path}"


def parse_origin(url: str) -> Origin:
    """The origin in `url`, such as `http://127.0.0.1:9001/v1`, `https://...`, or `mtls://...` for a
    replica with a certificate of its fleet. Raises `ValueError`.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("a URL with a password in it is refused; give the key as its own setting")
    try:
        parts = urlsplit(url)
        port = parts.port
        # The result can be written into a request as it is.
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https", FLEET_SCHEME) or not host:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} has a query or fragment; give the base URL alone")
    if port == 0 or not host.isprintable() or " " in host:
        raise ValueError(f"{url!r} is not a URL: no server can be at {parts.netloc!r}")
    tls = parts.scheme != "http"
    path = quote_part(parts.path.rstrip("/"))
    return Origin(host, port or (443 if tls else 80), tls, path, fleet=parts.scheme == FLEET_SCHEME)


def quote_part(part: str) -> str:
    """`part` of a URL in ASCII and without spaces; existing percent-encoding is kept."""
    return quote(part, safe="/?:@!$&'()*+,;=%-._~")
