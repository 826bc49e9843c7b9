"""Base URLs: what stands before `/chat/completions`, as in the OpenAI client libraries.

`http://host/v3` is asked at `/v3/chat/completions`. A URL without a path gets `/v1`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from thrifty.openai.fields import Endpoint

VERSION = "/v1"


def find_api(base_path: str) -> str:
    """The path below which the endpoints of the API are, for the path of a base URL."""
    return base_path.rstrip("/") or VERSION


def find_root(base_path: str) -> str:
    """The path below which a server has what is not part of the API, such as `/tokenize`."""
    return base_path.rstrip("/").removesuffix(VERSION)


def find_endpoint(base_path: str, endpoint: Endpoint) -> str:
    """The path of an endpoint at a server with this base path."""
    own = endpoint.value.removeprefix(VERSION)
    return (find_root(base_path) if own == endpoint.value else find_api(base_path)) + own


def complete_url(url: str) -> str:
    """A base URL with its path, without a slash at its end."""
    url = url.rstrip("/")
    return url if urlsplit(url).path else url + VERSION


def shorten_url(url: str) -> str:
    """The one form of a base URL that is stored: `http://host` for `http://host/v1/`."""
    url = url.rstrip("/")
    return url.removesuffix(VERSION) if urlsplit(url).path == VERSION else url
