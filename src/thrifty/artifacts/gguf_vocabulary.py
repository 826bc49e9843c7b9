"""A `tokenizer.json` as the metadata of a GGUF: the way back from `gguf_tokenizer`.

Byte-level BPE alone, and of it the ways of splitting text that llama.cpp has a name for and
`gguf_tokenizer` reads: what cannot be said exactly is refused, because a tokenizer that is nearly right
makes a model that is quietly worse.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

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
from thrifty.artifacts.inspect import read_json
from thrifty.errors import FormatRefused, IntegrityError

CHECK_TEXT = (
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天 \n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n\r\n"
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, "
    "'RE you sure? 'M not sure I'LL make it, D'you like some tea? We'Ve a'lL  x_1 = f(y)**2;  # été e\u0301"
)
"""Where ways of splitting differ, after the text that llama.cpp's converter tells them apart by."""


def describe_vocabulary(folder: Path, shape: DecoderShape) -> dict[str, Any]:
    """The `tokenizer.` metadata of the checkpoint in `folder`. Raises `FormatRefused` for what GGUF
    cannot express.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FormatRefused(
            f"{folder} has no tokenizer.json; save its fast tokenizer with it "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    tokenizer = read_tokenizer(path)
    plan = json.loads(tokenizer.to_str())
    tokens, types = _list_tokens(plan, shape.vocab_size)
    if not plan["model"]["merges"]:
        raise FormatRefused("the tokenizer has no merges, and GGUF has no byte-level BPE without")
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
    template = _read_template(folder)
    if template:
        found["tokenizer.chat_template"] = template
    return found


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, without limits on lengths."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare ones
        raise IntegrityError(f"{path} is damaged: {error}; fetch the model again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_same_tokens(path: Path, expected: Tokenizer) -> None:
    """Raise `FormatRefused` unless the GGUF at `path` has the tokens of `expected`, and makes the same
    of text that ways of splitting differ on.
    """
    found = build_tokenizer(GgufFile(path))
    ours, theirs = found.get_vocab(), expected.get_vocab()
    wrong = next((token for token, index in theirs.items() if ours.get(token) != index), None)
    if wrong is not None:
        raise FormatRefused(
            f"GGUF cannot keep this tokenizer: {wrong!r} would be the token {ours.get(wrong)}, not "
            f"{theirs[wrong]}"
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
                    "GGUF cannot keep this tokenizer: it would split text otherwise"
                )


def _list_tokens(plan: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token by its id, and its kind. Ids that no token has are filled up."""
    model = plan["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece" if model.get("byte_fallback") else model.get("type")
        raise FormatRefused(
            f"the tokenizer is of the kind {kind}; byte-level BPE is written as GGUF (as Llama 3, Qwen "
            "and SmolLM have it)"
        )
    named = {index: (token, NORMAL) for token, index in model["vocab"].items()}
    for added in plan["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise FormatRefused(
                f"the token {added['content']!r} takes spaces around it, which GGUF cannot express"
            )
        kind = CONTROL if added["special"] else USER_DEFINED
        named[added["id"]] = (added["content"], kind)
    if max(named) >= size:
        raise FormatRefused(
            f"the tokenizer has a token {max(named)}, and the model only {size}; save the tokenizer "
            "that the model was trained with"
        )
    filled = [named.get(index, (f"[PAD{index}]", UNUSED)) for index in range(size)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _find_kind(plan: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which text is split beforehand."""
    wanted = _essence(plan)
    for kind in BYTE_LEVEL_KINDS:
        built = build_byte_level(kind, {"a": 0}, [])
        if _essence(json.loads(built.to_str())) == wanted:
            return kind
    raise FormatRefused(
        "the tokenizer splits text in a way that has no name in GGUF here; "
        f"{', '.join(BYTE_LEVEL_KINDS)} are known"
    )


def _essence(plan: dict[str, Any]) -> Any:
    """What decides over the tokens of a text, but for the vocabulary."""
    steps = plan["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    # Offsets are no tokens, and a comparison must not turn on them.
    bare = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    model = plan["model"]
    kept = {key: model.get(key) for key in ("dropout", "unk_token", "continuing_subword_prefix",
                                            "end_of_word_suffix")}  # fmt: skip
    empty = {key: value or None for key, value in kept.items()}
    return [plan["normalizer"], bare, empty, bool(model.get("ignore_merges"))]


def _find_first(tokenizer: Tokenizer) -> int | None:
    """The token that every text begins with, if there is one."""
    marked = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    if marked == plain:
        return None
    if len(marked) == len(plain) + 1 and marked[1:] == plain:
        return int(marked[0])
    raise FormatRefused(
        "the tokenizer puts more around a text than one token before it, which is not written as GGUF"
    )


def _read_template(folder: Path) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.exists():
        return plain.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None
