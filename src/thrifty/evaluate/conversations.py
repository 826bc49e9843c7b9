"""Conversations as windows of tokens, of which only what the model says counts.

A conversation is rendered by the model's own chat template, as a server renders it, with its system
message and its tools. Each turn of the assistant counts from the end of the prompt that asks for it
to the token that ends the turn, which is what a model generates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import ToolPlan, parse_tools
from thrifty.errors import EvaluationError
from thrifty.evaluate.windows import MIN_TOKENS, TokenWindow
from thrifty.openai.errors import WireError, bad_request
from thrifty.text.tokenizer import TextTokenizer

_WHOLE = {"add_generation_prompt": False}


def holds_conversations(path: Path) -> bool:
    """Whether the first record of a `.jsonl` file has `messages`."""
    return path.suffix == ".jsonl" and "messages" in next(read_records(path), ({}, ""))[0]


def read_conversations(
    path: Path, tokenizer: TextTokenizer, length: int, limit: int | None = None
) -> Iterator[TokenWindow]:
    """Yield a window for each conversation in a `.jsonl` file, at most `limit` tokens in total.

    A record has `messages` and may have `tools`, as in a request. Windows have at most `length`
    tokens; what follows is cut off, and a conversation of which nothing counts is left out. Raises
    `EvaluationError` for a record that the model's template does not take, and if nothing counts.
    """
    taken = 0
    for record, where in read_records(path):
        room = length if limit is None else min(length, limit - taken)
        if room < min(MIN_TOKENS, length):
            break
        try:
            window = render_conversation(record, tokenizer, room)
        except WireError as error:
            raise EvaluationError(f"{where}: {error.message}") from None
        if window is not None:
            taken += len(window.tokens)
            yield window
    if not taken:
        raise EvaluationError(
            f"{path} has no conversation in which the assistant says something within the first "
            f"{length if limit is None else min(length, limit)} tokens"
        )


def render_conversation(
    record: dict[str, Any], tokenizer: TextTokenizer, length: int
) -> TokenWindow | None:
    """The window of one conversation; None if nothing in it counts. Raises `WireError`."""
    messages, tools = record.get("messages"), record.get("tools")
    extra = record.get("chat_template_kwargs")
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with a message.", "messages", "invalid_value")
    if not isinstance(tools, list | None):
        raise bad_request("'tools' must be a list.", "tools", "invalid_value")
    if not isinstance(extra, dict | None):
        raise bad_request(
            "'chat_template_kwargs' must be an object.", "chat_template_kwargs", "invalid_value"
        )
    plan = parse_tools({"tools": tools})
    whole = _encode(messages, tokenizer, plan, extra, **_WHOLE)
    ends = set(tokenizer.find_turn_ends())
    said = np.zeros(len(whole), np.bool_)
    for number, message in enumerate(messages):
        if not number or message["role"] != "assistant":
            continue
        before = _encode(messages[:number], tokenizer, plan, extra)
        until = _encode(messages[: number + 1], tokenizer, plan, extra, **_WHOLE)
        # Templates may write earlier turns in another form, such as without their reasoning.
        if whole[: len(until)] != until or until[: len(before)] != before:
            continue
        turn = until[len(before) :]
        end = next((at for at, token in enumerate(turn) if token in ends), len(turn) - 1)
        said[len(before) : len(before) + end + 1] = True
    if not said[1:length].any():
        return None
    return TokenWindow(np.array(whole[:length], np.int64), said[1:length])


def _encode(
    messages: list[Any],
    tokenizer: TextTokenizer,
    plan: ToolPlan,
    extra: dict[str, Any] | None,
    **settings: bool,
) -> list[int]:
    body = {"messages": messages, "chat_template_kwargs": extra, **settings}
    return build_prompt(body, tokenizer, plan).ids


def read_records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a `.jsonl` file, and where each stands. Raises `EvaluationError`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    raise EvaluationError(f"{where}: not a line of JSON") from None
                if not isinstance(record, dict):
                    raise EvaluationError(f"{where}: not a JSON object")
                if "\\u" in line and not _is_unicode(record):
                    raise EvaluationError(f"{where}: half of a surrogate pair is not a character")
                yield record, where
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None


def _is_unicode(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
