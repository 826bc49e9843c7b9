"""What endpoints that list rows of the database share: threads, parameters, pages, errors."""

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
from thrifty.openai.errors import NOT_FOUND, WireError, bad_request, forbid_tenant
from thrifty.types import Role
from thrifty.untrusted_text import sanitize_text

THREADS = 4
MAX_QUERY_CHARS = 256
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_CURSOR = re.compile("[0-9]{1,19}")

encode = msgspec.json.Encoder().encode


class Threads:
    """A few threads that wait for the database and the disk."""

    def __init__(self, name: str = "files") -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)

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
    data = [describe(row) for row in rows]
    exchange.respond(
        200,
        encode(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": more,
            }
        ),
    )


def read_tenant(key: Key | None) -> str:
    """The tenant whose rows a key may see; without keys all belong to one tenant."""
    return key.tenant if key is not None else ""


def find_visible_tenant(
    exchange: Exchange, key: Key | None, query: Mapping[str, str]
) -> str | None:
    """The tenant whose rows the caller asks for; None means all, which only admins may see, and
    callers on this machine where no keys exist. Raises a 403.
    """
    all_visible = key.role is Role.ADMIN if key is not None else exchange.from_this_machine
    wanted = query.get("tenant")
    if all_visible:
        return wanted
    own = read_tenant(key)
    if wanted not in (None, own):
        raise forbid_tenant("rows")
    return own


def read_time(query: Mapping[str, str], name: str) -> float | None:
    """A time of the query, in seconds since 1970."""
    text = query.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise bad_request(
            f"'{name}' must be a number of seconds since 1970, not {text[:60]!r}.",
            name,
            "invalid_value",
        )
    return float(text)


def read_cursor(query: Mapping[str, str], prefix: str) -> int | None:
    """The number in the id after which the page begins."""
    text = query.get("after")
    if text is None:
        return None
    number = text.removeprefix(prefix)
    if not _CURSOR.fullmatch(number) or int(number) >= 2**63:
        raise no_such("entry", text, "after")
    return int(number)


def read_query(exchange: Exchange, names: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters; parameters outside `names` are refused."""
    query = {}
    for name, values in parse_qs(exchange.query.decode("latin-1")).items():
        if name not in names:
            raise unknown(name)
        query[name] = sanitize_text(values[-1], MAX_QUERY_CHARS)
    return query


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


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """A parameter that is `true` or `false`; false where it is not given."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise bad_request(
            f"'{name}' must be true or false, not {text[:60]!r}.", name, "invalid_value"
        )
    return text == "true"


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
