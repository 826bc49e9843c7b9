"""Every GGUF that we make cuts text into the checkpoint's own tokens, by llama.cpp's own word.

With vocabularies as they were trained, and with those that pruning leaves. Characters are composed:
llama.cpp leaves that to others, and is sent tokens.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import CORPUS, make_gpt2_metadata
from tests.engines.test_llamacpp import needs_llama_cpp
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import BYTE_LEVEL_KINDS, build_tokenizer
from thrifty.artifacts.gguf_vocabulary import CHECK_TEXT
from thrifty.artifacts.tokenizer_files import write_gguf_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.prune.token_choice import read_ids, read_merges
from thrifty.compress.prune.vocabulary import KeptTokens, keep_tokens, write_kept
from thrifty.engines.llamacpp.prepare import _write_weights
from thrifty.engines.llamacpp.process import LlamaProcess
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import ignore_progress

pytestmark = needs_llama_cpp

SIZE = 400
TEXTS = 600
ALPHABETS = (
    "abc ABC 123 ,.!?'\"\n\t ", "äöüßéèñçøå ÄÖ", "你好世界東京タワー안녕 ", "Привет мир нещо ",
    "🦙😁🚀✅😶‍🌫️👨‍👩‍👧 a", "\u00a0\u200b\u2028\u3000\r\n \t", "<|im_start|><|im_end|> user\n", "\u2018\u2019\u201c\u201d…—\u2013·•©®™½²³ s",
)  # fmt: skip


BLOCKS = (
    (0x20, 0x250), (0x370, 0x600), (0x900, 0xE00), (0x2000, 0x2600), (0x3040, 0x3100),
    (0x4E00, 0x9FA0), (0xAC00, 0xD7A0), (0x1F300, 0x1F650),
)  # fmt: skip
"""Of Unicode, long assigned."""


def make_texts() -> Iterator[str]:
    """Parts of sentences, of alphabets that tokenizers differ on, and of blocks of Unicode."""
    draw = np.random.default_rng(3)
    corpus = "".join((*CORPUS, CHECK_TEXT))
    for number in range(TEXTS):
        count = int(draw.integers(1, 40))
        if number % 3 == 0:
            begin = int(draw.integers(len(corpus)))
            yield unicodedata.normalize("NFC", corpus[begin : begin + 3 * count])
        elif number % 3 == 1:
            letters = list(ALPHABETS[number % len(ALPHABETS)])
            yield "".join(draw.choice(letters, count))
        else:
            begin, end = BLOCKS[number % len(BLOCKS)]
            text = "".join(chr(one) for one in draw.integers(begin, end, count))
            # What is no letter yet may be one for a library that knows a newer Unicode.
            known = (one for one in text if unicodedata.category(one)[0] != "C")
            yield unicodedata.normalize("NFC", "".join(known))


def write_model(folder: Path, kind: str) -> Path:
    """A checkpoint with a byte-level vocabulary."""
    source = folder / "gguf"
    source.mkdir()
    model = Llama(vocab=SIZE, hidden=32, inner=64, context=256)
    path = model.write_gguf(source / "m.gguf", extra=make_gpt2_metadata(SIZE, kind))
    whole = folder / "whole"
    write_decoder(load_decoder(source), whole)
    write_gguf_tokenizer(GgufFile(path), build_tokenizer(GgufFile(path)), whole, source)
    return whole


def prune_tokens(whole: Path, folder: Path) -> Path:
    """The same without about half of the tokens that no other one is made of."""
    checkpoint = load_decoder(whole)
    plan = json.loads((whole / "tokenizer.json").read_text())
    ids, parts = read_ids(plan), {left + right: (left, right) for left, right in read_merges(plan)}
    draw, gone, needed = np.random.default_rng(5), set[int](), set[str]()
    for token, index in sorted(ids.items(), key=lambda item: -item[1]):
        if token in parts and token not in needed and draw.random() < 0.5:
            gone.add(index)
        else:
            needed.update(parts.get(token, ()))
    kept = KeptTokens(tuple(index for index in range(SIZE) if index not in gone))
    assert len(gone) > 30
    write_decoder(keep_tokens(checkpoint, kept), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    write_kept(folder, whole, kept, SIZE)
    return folder


@pytest.mark.parametrize("kind", BYTE_LEVEL_KINDS)
async def test_llama_cpp_cuts_text_alike(kind: str, tmp_path: Path) -> None:
    whole = write_model(tmp_path, kind)
    for folder in (whole, prune_tokens(whole, tmp_path / "pruned")):
        path = folder / "q8.gguf"
        _write_weights(folder, path, "m", "int8", ignore_progress)
        tokenizer = TextTokenizer.load(folder)
        process = LlamaProcess(
            Path(sys.executable),
            WorkerSettings(model=str(path), threads=1, slots=1, context=64, prefix_cache=False),
        )
        await process.start()
        try:
            for text in make_texts():
                body = {"content": text, "add_special": True, "parse_special": True}
                theirs = (await process.ask("/tokenize", body))["tokens"]
                assert theirs == tokenizer.encode(text), (folder.name, text)
        finally:
            await process.stop()
