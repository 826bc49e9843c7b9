"""Reads the JSON object of `POST /v1/feedback`. Nothing in it is accepted and ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.db.feedback import Item
from thrifty.openai.errors import WireError, bad_request, list_names
from thrifty.openai.fields import MAX_USER, check_tags, encode_tags, show_value
from thrifty.untrusted_text import sanitize_text

EVENTS = ("copied", "regenerated", "edited", "abandoned", "followed_up")
THUMBS = {"up": 1.0, "down": 0.0}
MAX_ID, MAX_CATEGORY = 128, 64
MAX_COMMENT, MAX_CORRECTION, MAX_VALUE_CHARS = 10_000, 100_000, 256
MAX_NUMBER = 1e12
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_FIELDS = (
    "id", "response_id", "conversation_id", "thumbs", "rating", "category", "comment",
    "correction", "event", "name", "value", "tags", "user",
)  # fmt: skip
_VALUES = ("thumbs", "rating", "category", "comment", "correction", "event", "name")


@dataclass(frozen=True)
class ParsedFeedback:
    """The object as it was sent; exactly one of the two ids is set."""

    items: tuple[Item, ...]
    response_id: str | None
    conversation_id: str | None
    client_id: str | None
    user: str | None
    tags: str | None


def parse_feedback(body: Mapping[str, Any]) -> ParsedFeedback:
    """Parse and validate. Raises a 400 that names the field at fault."""
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in _FIELDS:
            raise bad_request(
                f"Unknown parameter: '{name[:64]}'. Known here: {list_names(_FIELDS)}.",
                name[:64],
                "unknown_parameter",
            )
    response_id = _read_text(given, "response_id", 256)
    conversation_id = _read_text(given, "conversation_id", 256)
    if (response_id is None) == (conversation_id is None):
        raise bad_request(
            "Name either 'response_id' or 'conversation_id': what the feedback is about.",
            "response_id",
            "missing_required_parameter",
        )
    if conversation_id is not None and "correction" in given:
        raise bad_request(
            "'correction' corrects one response; name it in 'response_id'.",
            "correction",
            "invalid_value",
        )
    tags = given.get("tags")
    if tags is not None:
        check_tags(tags, "tags")
    return ParsedFeedback(
        _read_items(given),
        response_id,
        conversation_id,
        _read_text(given, "id", MAX_ID),
        _read_text(given, "user", MAX_USER),
        encode_tags(tags) if tags else None,
    )


def _read_items(given: Mapping[str, Any]) -> tuple[Item, ...]:
    if "value" in given and "name" not in given:
        raise bad_request(
            "'value' needs a 'name': what is measured.", "name", "missing_required_parameter"
        )
    readers: dict[str, Callable[[Mapping[str, Any]], Item]] = {
        "thumbs": _read_thumbs, "rating": _read_rating, "category": _read_category,
        "comment": _read_comment, "correction": _read_correction, "event": _read_event,
        "name": _read_score,
    }  # fmt: skip
    items = tuple(read(given) for name, read in readers.items() if name in given)
    if not items:
        raise bad_request(
            f"There is no feedback in it; give one of {list_names(_VALUES)}.",
            "thumbs",
            "missing_required_parameter",
        )
    return items


def _read_thumbs(given: Mapping[str, Any]) -> Item:
    thumbs = given["thumbs"]
    if not isinstance(thumbs, str) or thumbs not in THUMBS:
        raise _invalid("thumbs", "'up' or 'down'", thumbs)
    return Item("thumbs", THUMBS[thumbs])


def _read_rating(given: Mapping[str, Any]) -> Item:
    rating = given["rating"]
    if not _is_number(rating) or not 1 <= rating <= 5:
        raise _invalid("rating", "a number from 1 to 5; for other scales use 'name'", rating)
    return Item("rating", float(rating))


def _read_category(given: Mapping[str, Any]) -> Item:
    return Item("category", text=_read_text(given, "category", MAX_CATEGORY))


def _read_comment(given: Mapping[str, Any]) -> Item:
    return Item("comment", text=_read_text(given, "comment", MAX_COMMENT))


def _read_correction(given: Mapping[str, Any]) -> Item:
    return Item("correction", text=_read_text(given, "correction", MAX_CORRECTION))


def _read_event(given: Mapping[str, Any]) -> Item:
    event = given["event"]
    if event not in EVENTS:
        raise _invalid("event", f"one of {list_names(EVENTS)}", event)
    return Item(f"event:{event}", 1.0)


def _read_score(given: Mapping[str, Any]) -> Item:
    name, value = given["name"], given.get("value")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "1 to 64 letters, digits, '_', '.' or '-', beginning with a letter"
        raise _invalid("name", rule, name)
    kind = f"score:{name}"
    if isinstance(value, bool):
        return Item(kind, float(value))
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
        return Item(kind, float(value))
    if isinstance(value, str) and 0 < len(value) <= MAX_VALUE_CHARS:
        return Item(kind, text=sanitize_text(value))
    rule = f"a number, true, false or a text of up to {MAX_VALUE_CHARS} characters"
    raise _invalid("value", rule, value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and (type(value) is int or math.isfinite(value))


def _read_text(given: Mapping[str, Any], name: str, most: int) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise _invalid(name, f"a text of 1 to {most} characters", value)
    return sanitize_text(value)


def _invalid(name: str, rule: str, value: Any) -> WireError:
    return bad_request(f"'{name}' must be {rule}, not {show_value(value)}.", name, "invalid_value")
