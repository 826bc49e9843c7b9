"""A model's tokenizer as the files that the tokenizers library and transformers read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from thrifty.artifacts.artifact import Artifact
from thrifty.artifacts.chat_templates import (
    read_chat_templates,
    read_gguf_templates,
    write_chat_templates,
)
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.inspect import read_json
from thrifty.errors import FormatRefused
from thrifty.types import Format

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
)  # fmt: skip


def write_tokenizer(source: Path, target: Path, artifact: Artifact) -> Tokenizer:
    """Write a checkpoint's tokenizer into `target`, as the tokenizers library and transformers read
    it. Raises `FormatRefused` where there is none.
    """
    if artifact.description.format is Format.GGUF:
        file = GgufFile(next(iter(sorted(source.glob("*.gguf")))))
        tokenizer = build_tokenizer(file)
        write_gguf_tokenizer(file, tokenizer, target, source)
        return tokenizer
    if not (source / "tokenizer.json").exists():
        raise FormatRefused(
            "the checkpoint has no tokenizer.json; save its fast tokenizer with it "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    copy_tokenizer_files(source, target)
    return Tokenizer.from_file(str(target / "tokenizer.json"))


def drop_missing_tokens(folder: Path, size: int) -> Tokenizer:
    """Take the added tokens beyond the `size` of the model's table out of the tokenizer in
    `folder`: the engine would read zeros for them. Their text is text like any other then. Raises
    `FormatRefused` where the vocabulary itself is larger than the table.
    """
    path = folder / "tokenizer.json"
    made = read_json(path)
    added = made.get("added_tokens") or []
    kept = [token for token in added if token["id"] < size]
    if len(kept) < len(added):
        made["added_tokens"] = kept
        path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(path))
    token, last = max(tokenizer.get_vocab().items(), key=lambda one: one[1], default=("", -1))
    if last >= size:
        raise FormatRefused(
            f"the tokenizer has a token {last} ({token!r:.40}), but the model only {size}; save the "
            "tokenizer that the model was trained with, or resize the model's embeddings"
        )
    return tokenizer


def write_gguf_tokenizer(file: GgufFile, tokenizer: Tokenizer, target: Path, source: Path) -> None:
    """Write the `tokenizer` of a GGUF into `target`, with its special tokens and chat templates:
    those in `source`, the model's folder, in place of those in the file.
    """
    tokenizer.save(str(target / "tokenizer.json"))
    templates = read_chat_templates(source) or read_gguf_templates(file.metadata, file.path)
    write_chat_templates(target, templates)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    special = {
        name: tokens[file.metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in file.metadata
    }
    text = json.dumps(special, indent=1) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy what a checkpoint has of a tokenizer, its chat templates included."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    write_chat_templates(target, read_chat_templates(source))
