"""Convert a `tokenizer.json` to GGUF metadata: the inverse of `gguf_tokenizer`.

Only byte-level BPE with a pre-tokenizer that llama.cpp has a name for and `gguf_tokenizer`
supports. What GGUF cannot express exactly is refused, because a tokenizer that is slightly wrong
makes a model worse without any sign of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from thrifty.artifacts.chat_templates import describe_gguf_templates, read_chat_templates
from thrifty.artifacts.checkpoint import DecoderShape
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import (
    BYTE_LEVEL_KINDS,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    build_byte_level,
    build_tokenizer,
)
from thrifty.errors import FormatRefused, IntegrityError

CHECK_TEXT = (
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天 \n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n\r\n"
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, "
    "'RE you sure? 'M not sure I'LL make it, D'you like some tea? We'Ve a'lL  x_1 = f(y)**2;  # été e\u0301"
)
"""Text on which pre-tokenizers differ, after the one in llama.cpp's converter."""


def describe_vocabulary(folder: Path, shape: DecoderShape) -> dict[str, Any]:
    """The `tokenizer.` metadata of the checkpoint in `folder`.

    Raises `FormatRefused` for a tokenizer that GGUF cannot express.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FormatRefused(
            f"{folder} has no tokenizer.json; save its fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    tokenizer = read_tokenizer(path)
    plan = json.loads(tokenizer.to_str())
    tokens, types = _list_tokens(plan, shape.vocab_size)
    if not plan["model"]["merges"]:
        raise FormatRefused("the tokenizer has no merges, which byte-level BPE in GGUF requires")
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _find_kind(plan),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in plan["model"]["merges"]
        ],
    }
    first = _find_first(tokenizer)
    found["tokenizer.ggml.add_bos_token"] = first is not None
    bos = first if first is not None else shape.bos_token_id
    ends = dict(zip(("eos", "eot", "eom"), shape.eos_token_ids, strict=False))
    ids = {"bos": bos, **ends, "padding": shape.pad_token_id}
    found |= {f"tokenizer.ggml.{key}_token_id": i for key, i in ids.items() if i is not None}
    return found | describe_gguf_templates(read_chat_templates(folder))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, without truncation and padding."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare ones
        raise IntegrityError(f"{path} is damaged: {error}; fetch the model again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_same_tokens(path: Path, expected: Tokenizer) -> None:
    """Raise `FormatRefused` unless the GGUF at `path` has the tokens of `expected` and tokenizes
    `CHECK_TEXT` in the same way.
    """
    found = build_tokenizer(GgufFile(path))
    ours, theirs = found.get_vocab(), expected.get_vocab()
    wrong = next((token for token, index in theirs.items() if ours.get(token) != index), None)
    if wrong is not None:
        raise FormatRefused(
            f"GGUF cannot express this tokenizer: {wrong!r} would be the token {ours.get(wrong)} "
            f"instead of {theirs[wrong]}"
        )
    special = "".join(
        sorted(token.content for token in expected.get_added_tokens_decoder().values())
    )
    for text in (CHECK_TEXT, f"{CHECK_TEXT}{special}a {special}", ""):
        for marks in (True, False):
            if (
                found.encode(text, add_special_tokens=marks).ids
                != expected.encode(text, add_special_tokens=marks).ids
            ):
                raise FormatRefused(
                    "GGUF cannot express this tokenizer: it would split text differently"
                )


def _list_tokens(plan: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """All tokens and their types, by id. Unused ids get placeholders."""
    model = plan["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece" if model.get("byte_fallback") else model.get("type")
        raise FormatRefused(
            f"the tokenizer is of the kind {kind}; only byte-level BPE can be written as GGUF (as "
            "in Llama 3, Qwen and SmolLM)"
        )
    named = {index: (token, NORMAL) for token, index in model["vocab"].items()}
    for added in plan["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise FormatRefused(
                f"the token {added['content']!r} absorbs adjacent spaces, which GGUF cannot express"
            )
        kind = CONTROL if added["special"] else USER_DEFINED
        named[added["id"]] = (added["content"], kind)
    if max(named) >= size:
        raise FormatRefused(
            f"the tokenizer has a token {max(named)}, but the model only {size}; save the "
            "tokenizer that the model was trained with"
        )
    filled = [named.get(index, (f"[PAD{index}]", UNUSED)) for index in range(size)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _find_kind(plan: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer."""
    wanted = _essence(plan)
    for kind in BYTE_LEVEL_KINDS:
        built = build_byte_level(kind, {"a": 0}, [])
        if _essence(json.loads(built.to_str())) == wanted:
            return kind
    raise FormatRefused(
        "the tokenizer's pre-tokenizer has no name in GGUF here; "
        f"{', '.join(BYTE_LEVEL_KINDS)} are supported"
    )


def _essence(plan: dict[str, Any]) -> Any:
    """Everything that determines a text's tokens, except the vocabulary."""
    steps = plan["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    # Offsets do not affect tokens.
    bare = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    model = plan["model"]
    kept = {key: model.get(key) for key in ("dropout", "unk_token", "continuing_subword_prefix",
                                            "end_of_word_suffix")}  # fmt: skip
    empty = {key: value or None for key, value in kept.items()}
    return [plan["normalizer"], bare, empty, bool(model.get("ignore_merges"))]


def _find_first(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, if there is one."""
    marked = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    if marked == plain:
        return None
    if len(marked) == len(plain) + 1 and marked[1:] == plain:
        return int(marked[0])
    raise FormatRefused(
        "the tokenizer adds more to a text than one token before it, which GGUF cannot express"
    )
