"""Shared by the handlers for files and for batches: their parameters, and what all lists share."""

from __future__ import annotations

import re
from typing import Any

from thrifty.gateway.app.lists import Threads as Threads
from thrifty.gateway.app.lists import encode as encode
from thrifty.gateway.app.lists import no_such as no_such
from thrifty.gateway.app.lists import read_limit as read_limit
from thrifty.gateway.app.lists import read_query as read_query
from thrifty.gateway.app.lists import read_tenant as read_tenant
from thrifty.gateway.app.lists import respond_page as respond_page
from thrifty.gateway.app.lists import unknown as unknown
from thrifty.openai.errors import bad_request

MIN_KEEP_S, MAX_KEEP_S = 3600, 30 * 86400
PURPOSE = "batch"
"""The only purpose of uploaded files."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The ids of files and batches, and no others, look like this."""


def to_stamp(seconds: float | None) -> int | None:
    """A time in whole seconds, as the API uses."""
    return None if seconds is None else int(seconds)


def read_id(ident: str, what: str, param: str | None = None) -> str:
    """`ident`, if it can be the id of anything here. Raises a 404."""
    if not _ID.fullmatch(ident):
        raise no_such(what, ident, param)
    return ident


def read_expiry(anchor: Any, seconds: Any, name: str = "expires_after") -> float | None:
    """The time in seconds that a file is to be kept."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise bad_request(
            f"'{name}.anchor' must be 'created_at', not {str(anchor)[:60]!r}.",
            f"{name}.anchor",
            "invalid_value",
        )
    text = str(seconds)
    if isinstance(seconds, bool) or not text.isdecimal() or len(text) > 9 or not MIN_KEEP_S <= int(text) <= MAX_KEEP_S:  # fmt: skip
        raise bad_request(
            f"'{name}.seconds' must be a whole number between {MIN_KEEP_S} and {MAX_KEEP_S}, not "
            f"{text[:60]!r}.",
            f"{name}.seconds",
            "invalid_value",
        )
    return float(text)
