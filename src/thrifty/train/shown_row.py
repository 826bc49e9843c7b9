"""A row as a training reads it: its texts as tokens, and which of them are learned."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.data.built import BuiltSet
from thrifty.data.token_lengths import identify
from thrifty.errors import DataError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import TokenText, encode_row
from thrifty.train.rows import Method, Row, parse_row

NO_WINDOW = 2**31


def show_tokens(built: BuiltSet, row: Mapping[str, Any], store: Store) -> list[dict[str, Any]]:
    """The texts that a row is learned from, by the tokenizer that counted the set's lengths:
    `{"text", "tokens", "learned"}`, of which the last holds the begin and end of tokens. Nothing,
    where the set has no tokenizer. Raises `DataError` and `ArtifactError` where it is not here.
    """
    known = built.manifest.get("tokenizer")
    if known is None:
        return []
    _, artifact = store.find(known["model"])
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(store.folder_of(artifact.id), Path(name), artifact)
        tokenizer = TextTokenizer.load(Path(name))
    built.check_tokenizer(identify(tokenizer))
    return [
        {
            "text": tokenizer.decode(list(one.tokens), skip_special_tokens=False),
            "tokens": list(one.tokens), "learned": [list(span) for span in one.spans],
        }
        for one in _encode(built, row, tokenizer)
    ]  # fmt: skip


def _encode(built: BuiltSet, row: Mapping[str, Any], tokenizer: TextTokenizer) -> list[TokenText]:
    if "text" in row:
        tokens = tokenizer.encode(row["text"])
        return [TokenText(tokens, ((0, len(tokens)),))]
    method = Method(built.kind)
    found = parse_row(json.dumps(row).encode(), 0, method)
    examples = encode_row(found, method, tokenizer, NO_WINDOW) if isinstance(found, Row) else found
    if isinstance(examples, str):
        raise DataError(f"a training with this tokenizer sets the row aside: {examples}")
    return [text for example in examples for text in example.texts]
