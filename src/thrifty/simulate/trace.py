"""Recorded traffic: one request after the other, from files of several forms.

    Azure's LLM traces   CSV: TIMESTAMP, ContextTokens, GeneratedTokens
    Mooncake's traces    JSON lines: timestamp (ms), input_length, output_length, hash_ids
    the request log      CSV or JSON lines: at_s, prompt_tokens, completion_tokens, and
                         conversation_id and tenant where they are known
    `thrifty bench`      JSON lines: at_s, prompt_tokens, output_tokens

Files are read as a stream, gzipped ones too. Rows that are not as they should be are skipped,
counted and kept for the report, with their line.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import itertools
import math
import random
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from thrifty.errors import SimulationError
from thrifty.simulate.rates import BLOCK_TOKENS

MOONCAKE_BLOCK = 512
"""Tokens in a block of Mooncake's traces."""
MAX_LINE = 1_000_000
MAX_TOKENS = 10_000_000
REORDERED = 4096
"""Rows may be out of order by this many rows."""
SHOWN_FAULTS = 10
CONVERSATIONS = 100_000
"""Conversations that are remembered, to recognise their next turn."""
SPREAD_S = 1.0
"""Copies of a request (`scale`) arrive within this time after it, so that bursts stay bursts."""


class TraceRequest(NamedTuple):
    """One request of a trace."""

    at_s: float
    """Seconds since the first one."""
    prompt_tokens: int
    answer_tokens: int
    blocks: tuple[int, ...] = ()
    """Ids of the prompt's blocks, each for everything up to its end: equal leading ids mean an
    equal beginning."""
    block_tokens: float = BLOCK_TOKENS
    conversation: int = 0
    """Requests of one conversation have the same number; 0 if the trace does not tell."""
    tenant: str = ""


@dataclass
class TraceFaults:
    """The rows that were skipped."""

    count: int = 0
    shown: list[str] = field(default_factory=list)
    """The first ones, with their lines."""

    def add(self, line: int, why: str) -> None:
        """Count a row that cannot be used."""
        self.count += 1
        if len(self.shown) < SHOWN_FAULTS:
            self.shown.append(f"line {line}: {why}")


@dataclass(frozen=True)
class TraceOptions:
    """How a trace is fitted to what is simulated."""

    speed: float = 1.0
    """Times are divided by it: the same requests within less time."""
    scale: float = 1.0
    """Requests in place of each one, at the same times: 0.5 keeps every second one."""
    tokens: float = 1.0
    """Lengths of prompts and answers are multiplied by it."""
    skip_s: float = 0.0
    """Seconds of the trace, as recorded, that are left out at its beginning."""
    length_s: float = math.inf
    """Seconds of the trace, as recorded, that are used."""
    seed: int = 0


def read_trace(path: Path, options: TraceOptions, faults: TraceFaults) -> Iterator[TraceRequest]:
    """The requests of a trace in the order of their arrival; `faults` is filled on the way.

    Raises `SimulationError` if the file cannot be read, has no known form, or holds no request.
    """
    first_s: float | None = None
    rows = _in_order(_read_rows(path, faults), faults)
    stretch = _cut(rows, options)
    for request in _copy(stretch, options):
        if first_s is None:
            first_s = request.at_s
        yield _fit(request, options, first_s)
    if first_s is None:
        why = f"; {faults.count} rows cannot be used ({faults.shown[0]})" if faults.count else ""
        raise SimulationError(f"the trace {path} has no request in the stretch asked for{why}")


def _fit(request: TraceRequest, options: TraceOptions, first_s: float) -> TraceRequest:
    prompt = max(1, round(request.prompt_tokens * options.tokens))
    return request._replace(
        at_s=(request.at_s - first_s) / options.speed,
        prompt_tokens=prompt,
        answer_tokens=max(1, round(request.answer_tokens * options.tokens)),
        block_tokens=request.block_tokens * options.tokens,
    )


def _cut(rows: Iterator[TraceRequest], options: TraceOptions) -> Iterator[TraceRequest]:
    began_s: float | None = None
    for row in rows:
        began_s = row.at_s if began_s is None else began_s
        at_s = row.at_s - began_s
        if at_s >= options.skip_s + options.length_s:
            return
        if at_s >= options.skip_s:
            yield row


def _copy(rows: Iterator[TraceRequest], options: TraceOptions) -> Iterator[TraceRequest]:
    """`scale` requests for each row. Copies are other users: nothing is shared between them."""
    if options.scale == 1.0:
        yield from rows
        return
    rng = random.Random(f"{options.seed}/scale")
    pending: list[tuple[float, int, TraceRequest]] = []
    number = itertools.count()
    for row in rows:
        while pending and pending[0][0] <= row.at_s:
            yield heapq.heappop(pending)[2]
        copies = int(options.scale) + (rng.random() < options.scale % 1)
        for copy in range(copies):
            at_s = row.at_s + (rng.random() * SPREAD_S * options.speed if copy else 0.0)
            other = row._replace(
                at_s=at_s,
                blocks=tuple((block << 20) + copy for block in row.blocks),
                conversation=(row.conversation << 20) + copy if row.conversation else 0,
            )
            heapq.heappush(pending, (at_s, next(number), other))
    while pending:
        yield heapq.heappop(pending)[2]


def _in_order(
    rows: Iterator[tuple[int, TraceRequest]], faults: TraceFaults
) -> Iterator[TraceRequest]:
    """Rows by their time, as far as a bounded number of them can be sorted."""
    held: list[tuple[float, int, TraceRequest]] = []
    last_s = -math.inf
    for line, row in rows:
        if row.at_s < last_s:
            faults.add(line, f"its time is before that of the {REORDERED} rows above it")
            continue
        heapq.heappush(held, (row.at_s, line, row))
        if len(held) > REORDERED:
            last_s, _, first = heapq.heappop(held)
            yield first
    while held:
        yield heapq.heappop(held)[2]


def _read_rows(path: Path, faults: TraceFaults) -> Iterator[tuple[int, TraceRequest]]:
    """The rows of a file that can be used, with their lines."""
    number = 0
    try:
        with _open(path) as file:
            lines = _split_lines(file, faults)
            head = next(lines, None)
            while head is not None and not head[1].strip():
                head = next(lines, None)
            if head is None:
                raise SimulationError(f"the trace {path} is empty")
            number, text = head
            if text.lstrip().startswith("{"):
                parse: Callable[[str], TraceRequest] = _JsonRows().parse
                lines = itertools.chain([head], lines)
            else:
                parse = _CsvRows(path, text).parse
            for line, row in lines:
                number = line
                if row.strip():
                    try:
                        yield line, parse(row)
                    except _BadRow as error:
                        faults.add(line, str(error))
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise SimulationError(
            f"the trace {path} is damaged: its compressed data ends or breaks after line {number}; "
            "fetch it again"
        ) from None
    except OSError as error:
        raise SimulationError(f"the trace {path} cannot be read: {error.strerror}") from None


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    # The type of what it opens is both text and bytes to type checkers.
    return cast(IO[bytes], gzip.open(path) if compressed else path.open("rb"))


def _split_lines(file: IO[bytes], faults: TraceFaults) -> Iterator[tuple[int, str]]:
    """Lines with their numbers. A line that is longer than any row is skipped piece by piece."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE)
        if not line:
            return
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            faults.add(number, f"it has more than {MAX_LINE} bytes")
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            faults.add(number, "it is not UTF-8")


class _BadRow(Exception):
    """A row that cannot be used, and why."""


class _JsonRows:
    """JSON lines of any of the known forms."""

    def __init__(self) -> None:
        self._conversations = _Conversations()

    def parse(self, text: str) -> TraceRequest:
        """One row. Raises `_BadRow`."""
        try:
            row = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise _BadRow(f"it is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise _BadRow("it is not an object")
        if "input_length" not in row:
            return _parse_log_row(row)
        at_s = _read_seconds(row, "timestamp") / 1000
        prompt = _read_tokens(row, "input_length")
        answer = _read_tokens(row, "output_length")
        ids = row.get("hash_ids") or []
        if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
            raise _BadRow("hash_ids is not a list of whole numbers")
        whole = tuple(ids[: prompt // MOONCAKE_BLOCK])
        conversation = self._conversations.find(whole)
        return TraceRequest(at_s, prompt, answer, whole, MOONCAKE_BLOCK, conversation)


class _CsvRows:
    """CSV with a line of names, of any of the known forms."""

    def __init__(self, path: Path, head: str) -> None:
        try:
            self._names = [name.strip() for name in next(csv.reader([head]), [])]
        except csv.Error:  # such as the first line of a file that is no text
            self._names = []
        names = set(self._names)
        if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names:
            self._parse = _parse_azure_row
        elif {"at_s", "prompt_tokens"} <= names:
            self._parse = _parse_log_row
        else:
            raise SimulationError(
                f"the trace {path} has no known form: its first line is neither JSON nor has the "
                "columns TIMESTAMP, ContextTokens and GeneratedTokens, or at_s, prompt_tokens and "
                "completion_tokens"
            )

    def parse(self, text: str) -> TraceRequest:
        """One row. Raises `_BadRow`."""
        try:
            values = next(csv.reader([text], strict=True), [])
        except csv.Error as error:
            raise _BadRow(f"it is not CSV: {error}") from None
        if len(values) != len(self._names):
            raise _BadRow(f"it has {len(values)} values, not {len(self._names)}")
        return self._parse(dict(zip(self._names, values, strict=True)))


def _parse_azure_row(row: Mapping[str, Any]) -> TraceRequest:
    try:
        # Seven digits after the second; Python reads six.
        at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])
    except ValueError:
        raise _BadRow(f"TIMESTAMP is not a time: {_show(row['TIMESTAMP'])}") from None
    at_s = (at.replace(tzinfo=None) - datetime(2000, 1, 1)).total_seconds()
    return TraceRequest(
        at_s, _read_tokens(row, "ContextTokens"), _read_tokens(row, "GeneratedTokens")
    )


def _parse_log_row(row: Mapping[str, Any]) -> TraceRequest:
    """A row of the request log, or of a trace for `thrifty bench`."""
    at_s = _read_seconds(row, "at_s")
    prompt = _read_tokens(row, "prompt_tokens")
    names = ("completion_tokens", "output_tokens", "max_tokens")
    answer = _read_tokens(row, next((name for name in names if row.get(name)), names[0]))
    conversation = 0
    blocks: tuple[int, ...] = ()
    name = row.get("conversation_id")
    if name:
        # Each turn of a conversation begins with the turn before it.
        conversation = zlib.crc32(str(name).encode()) + 1
        count = min(prompt // BLOCK_TOKENS, MAX_TOKENS // BLOCK_TOKENS)
        blocks = tuple((conversation << 20) + i for i in range(count))
    tenant = str(row.get("tenant") or "")
    return TraceRequest(at_s, prompt, answer, blocks, BLOCK_TOKENS, conversation, tenant)


class _Conversations:
    """Which conversation a prompt goes on with: the one whose last prompt it begins with."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, int] = OrderedDict()
        self._next = itertools.count(1)

    def find(self, blocks: tuple[int, ...]) -> int:
        """The conversation of a prompt with these whole blocks."""
        if not blocks:
            return next(self._next)
        end = next((block for block in reversed(blocks) if block in self._ends), None)
        # An end goes on once: what many prompts begin with is no conversation.
        number = next(self._next) if end is None else self._ends.pop(end)
        self._ends[blocks[-1]] = number
        if len(self._ends) > CONVERSATIONS:
            self._ends.popitem(last=False)
        return number


def _read_seconds(row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(row[name])
    except KeyError:
        raise _BadRow(f"{name} is missing") from None
    except (TypeError, ValueError):
        raise _BadRow(f"{name} is not a number: {_show(row[name])}") from None
    if not math.isfinite(value):
        raise _BadRow(f"{name} is not a time: {_show(row[name])}")
    return value


def _read_tokens(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    if value is None or value == "":
        raise _BadRow(f"{name} is missing")
    try:
        tokens = float(value)
    except (TypeError, ValueError):
        raise _BadRow(f"{name} is not a number: {_show(value)}") from None
    if not (1 <= tokens <= MAX_TOKENS and tokens == int(tokens)):
        raise _BadRow(f"{name} is not a whole number from 1 to {MAX_TOKENS}: {_show(value)}")
    return int(tokens)


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:40] + "..."
