"""Makes text from outside harmless before it is stored, shown, logged or sent on.

`sanitize_text` is for what may have lines: columns and messages. `sanitize_line` is for what is one
line of limited length: a label, a header, a line of a log, a code.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any

import msgspec

REPLACEMENT = "\ufffd"
MAX_TEXT_CHARS = 2_000_000
"""The bound of texts for which no other is given."""
MAX_LOG_CHARS = 20_000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""The lines of every process's log."""
LOG_FORMAT_VARIABLE = "THRIFTY_LOG_FORMAT"
LOG_IDS = ("response_id", "trace_id")
"""What a message of a log may be about, as attributes of its record."""
_HALVES = re.compile("[\ud800-\udfff]")


def replace_halves(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair: JSON can name them, UTF-8 cannot."""
    return text if text.isascii() else _HALVES.sub(REPLACEMENT, text)


def sanitize_text(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """`text` without characters that no database stores, truncated to `max_chars` characters."""
    if len(text) > max_chars:
        text = text[:max_chars]
    if text.isascii():
        return text.replace("\0", REPLACEMENT) if "\0" in text else text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two adjacent halves become their character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", REPLACEMENT)


def sanitize_line(value: Any, max_chars: int) -> str:
    """Any value of JSON as one line of printable text, at most `max_chars` characters long.

    What cannot be printed (control characters, line ends, halves of surrogate pairs) is escaped.
    """
    text = to_text(value)
    if len(text) > max_chars:
        text = text[:max_chars]
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped[:max_chars]


def to_text(value: Any) -> str:
    """A string as it is, None as the empty string, another value of JSON as its JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        return repr(value)  # such as half of a surrogate pair in a list


class LineFormatter(logging.Formatter):
    """Writes each message of a log as one line, so that text from outside cannot forge another.
    Tracebacks keep their lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of a record, without its traceback."""
        return sanitize_line(super().formatMessage(record), MAX_LOG_CHARS)


class JsonFormatter(logging.Formatter):
    """Writes each message of a log as one JSON object, with the ids that its caller gave in `extra`
    (`LOG_IDS`).
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object of a record, with its traceback."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": sanitize_text(record.getMessage(), MAX_LOG_CHARS),
            "pid": record.process,
        }
        for name in LOG_IDS:
            value = getattr(record, name, None)
            if value:
                line[name] = sanitize_text(str(value), MAX_LOG_CHARS)
        if record.exc_info:
            line["exception"] = sanitize_text(self.formatException(record.exc_info), MAX_LOG_CHARS)
        return msgspec.json.encode(line).decode()


def make_log_formatter(kind: str | None) -> logging.Formatter:
    """The formatter of a process's log: `json`, or lines of text. Raises `ValueError`."""
    if kind == "json":
        return JsonFormatter()
    if kind in (None, "", "text"):
        return LineFormatter(LOG_FORMAT)
    raise ValueError(f"{LOG_FORMAT_VARIABLE} is {kind!r}; set it to text or json")
