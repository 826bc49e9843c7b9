"""Shared by the handlers for files and for batches: threads, parameters, lists, errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import msgspec

from thrifty.db.keys import Key
from thrifty.http.exchange import Exchange
from thrifty.openai.errors import NOT_FOUND, WireError, bad_request
from thrifty.untrusted_text import sanitize_text

THREADS = 4
MIN_KEEP_S, MAX_KEEP_S = 3600, 30 * 86400
PURPOSE = "batch"
"""The only purpose of uploaded files."""
MAX_QUERY_CHARS = 256
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The ids of files and batches, and no others, look like this."""

encode = msgspec.json.Encoder().encode


class Threads:
    """A few threads that wait for the database and the disk."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function` and return its result. It runs to its end even if the caller is
        cancelled.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Stop the threads once they have finished their current work."""
        self._pool.shutdown(wait=False)


async def respond_page(
    exchange: Exchange,
    threads: Threads,
    read: Callable[[], tuple[list[Any], bool]],
    describe: Callable[[Any], dict[str, Any]],
) -> None:
    """Respond with a page of a list. `read` returns its rows and whether there are more."""
    try:
        rows, more = await threads.run(read)
    except KeyError as error:
        raise no_such("entry", str(error.args[0]), "after") from None
    exchange.respond(
        200,
        encode(
            {
                "object": "list",
                "data": [describe(row) for row in rows],
                "first_id": rows[0].id if rows else None,
                "last_id": rows[-1].id if rows else None,
                "has_more": more,
            }
        ),
    )


def read_tenant(key: Key | None) -> str:
    """The tenant whose files and batches a key may see; without keys all belong to one tenant."""
    return key.tenant if key is not None else ""


def to_stamp(seconds: float | None) -> int | None:
    """A time in whole seconds, as the API uses."""
    return None if seconds is None else int(seconds)


def read_query(exchange: Exchange, names: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters; parameters outside `names` are refused."""
    query = {}
    for name, values in parse_qs(exchange.query.decode("latin-1")).items():
        if name not in names:
            raise unknown(name)
        query[name] = sanitize_text(values[-1], MAX_QUERY_CHARS)
    return query


def read_id(ident: str, what: str, param: str | None = None) -> str:
    """`ident`, if it can be the id of anything here. Raises a 404."""
    if not _ID.fullmatch(ident):
        raise no_such(what, ident, param)
    return ident


def read_limit(query: Mapping[str, str], default: int, most: int) -> int:
    """The maximum number of rows of a page."""
    text = query.get("limit", str(default))
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise bad_request(
            f"'limit' must be a whole number between 1 and {most}, not {text[:60]!r}.",
            "limit",
            "invalid_value",
        )
    return int(text)


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


def unknown(name: str) -> WireError:
    """The error for an unknown parameter."""
    return bad_request(f"Unknown parameter: '{name[:64]}'.", name[:64], "unknown_parameter")


def no_such(what: str, ident: str, param: str | None = None) -> WireError:
    """The error if a tenant has no file, batch or entry with that id."""
    return WireError(
        404,
        f"There is no {what} {ident[:100]!r}.",
        type=NOT_FOUND,
        param=param,
        code=f"{what}_not_found",
    )
