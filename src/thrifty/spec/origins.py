"""Origins and host names as a spec may write them, in the form that browsers send."""

from __future__ import annotations

import ipaddress
import re

_ORIGIN = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[^/:@?#\s\[\]]+)(?::([0-9]{1,5}))?/?", re.IGNORECASE
)
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def parse_origin(text: str) -> str:
    """An origin as browsers send it: `https://chat.example.com`, in lower case, without a path or
    a default port. `*` stays as it is. Raises `ValueError`.
    """
    if text == "*":
        return text
    match = _ORIGIN.fullmatch(text)
    port = int(match[3] or -1) if match else 0
    if match is None or not (port == -1 or 0 < port < 65536):
        raise ValueError(
            f"{text!r} is not an origin: write a scheme, a host and perhaps a port, such as "
            "'https://chat.example.com' or 'http://localhost:3000'; '*' allows every origin"
        )
    scheme, host = match[1].lower(), parse_host(match[2])
    default = 443 if scheme == "https" else 80
    return f"{scheme}://{host}" + (f":{port}" if port not in (-1, default) else "")


def parse_host(text: str) -> str:
    """A host name or address as it stands in a `Host` header, without a port: in lower case, IPv6
    addresses in brackets. Raises `ValueError`.
    """
    host = text.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise ValueError(
                f"{text!r} is not a host name: write it without a scheme, port or path, such as "
                "'llm.example.com'; names with other letters in their ASCII form (xn--...)"
            ) from None
        return host
    return f"[{address}]" if address.version == 6 else str(address)
