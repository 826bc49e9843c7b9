"""The tokens that end an answer, by all of a model's files together.

No single file can be relied on: fine-tunes often add an end of turn to the tokenizer and its chat
template and keep the `eos_token_id` of the base model, which then never comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thrifty.artifacts.chat_templates import read_chat_templates, read_gguf_templates
from thrifty.artifacts.inspect import read_json
from thrifty.errors import IntegrityError

KNOWN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<end_of_turn>", "<turn|>",
    "<|end|>", "<|end_of_turn|>", "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_text|>",
    "<|endoftext|>", "<|return|>", "<|call|>", "</s>",
)  # fmt: skip
"""Ends of turns in common chat templates."""


def find_ends(templates: Iterable[str], added_tokens: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of the known ends of turns that the templates write, if they are tokens of their
    own.
    """
    text = "\n".join(templates)
    ends = [end for end in KNOWN_ENDS if end in text and end in added_tokens]
    if "<|return|>" in ends and "<|end|>" in ends:
        ends.remove("<|end|>")  # In this format it ends a message, and the answer goes on.
    return tuple(added_tokens[end] for end in ends)


def read_ends(folder: Path) -> tuple[int, ...]:
    """The ends that the tokenizer's files in `folder` name: its `eos_token`, and the known ends of
    turns that its chat templates write. Raises `IntegrityError`.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return ()
    tokenizer = read_json(path)
    added = _read_added_tokens(tokenizer, path)
    found: list[int] = []
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    known = vocabulary if isinstance(vocabulary, dict) else {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = folder / name
        eos = read_token_text(read_json(config), "eos_token") if config.exists() else None
        index = None if eos is None else added.get(eos, known.get(eos))
        found += [index] if isinstance(index, int) else []
    return (*found, *find_ends(read_chat_templates(folder).values(), added))


def read_gguf_ends(metadata: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """The known ends of turns that a GGUF's chat templates write. Raises `IntegrityError`."""
    from thrifty.artifacts.gguf_tokenizer import CONTROL, USER_DEFINED

    templates = read_gguf_templates(metadata, path)
    if not templates:
        return ()
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    added = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (CONTROL, USER_DEFINED)
    }
    return find_ends(templates.values(), added)


def read_token_text(config: Mapping[str, Any], key: str) -> str | None:
    """The text of a token that `tokenizer_config.json` names, such as `eos_token`."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _read_added_tokens(tokenizer: Mapping[str, Any], path: Path) -> dict[str, int]:
    try:
        return {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens") or ()}
    except (TypeError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: its added tokens lack {error}") from None
