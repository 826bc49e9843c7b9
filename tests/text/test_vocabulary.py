"""The bytes of tokens, on which the engine's grammars and clients' log-probabilities depend."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import CORPUS, PIECES, llama_metadata, make_gpt2_metadata
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.text.tokenizer import TextTokenizer
from thrifty.text.vocabulary import read_vocabulary


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "m.gguf"
    Llama(layers=1).write_gguf(path, extra=make_gpt2_metadata(400))
    return build_tokenizer(GgufFile(path))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    Llama(layers=1).write_gguf(path, extra=llama_metadata(add_bos_token=False))
    return build_tokenizer(GgufFile(path))


@pytest.mark.parametrize("text", CORPUS)
def test_bytes_of_a_texts_tokens_are_the_text(byte_level: Tokenizer, text: str) -> None:
    vocabulary = read_vocabulary(byte_level, 400)
    ids = byte_level.encode(text).ids
    assert b"".join(vocabulary[i] for i in ids).decode() == text


def test_every_byte_has_its_token() -> None:
    assert read_vocabulary(make_tokenizer().tokenizer, 256) == [bytes([i]) for i in range(256)]


def test_special_tokens_stand_for_their_names(byte_level: Tokenizer) -> None:
    assert read_vocabulary(byte_level, 3) == [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]


def test_ids_past_the_vocabulary_stand_for_nothing(byte_level: Tokenizer) -> None:
    assert read_vocabulary(byte_level, 403)[400:] == [b"", b"", b""]


def test_sentencepieces_hold_spaces_and_bytes(sentencepiece: Tokenizer) -> None:
    vocabulary = read_vocabulary(sentencepiece, len(PIECES))
    assert vocabulary[3:259] == [bytes([i]) for i in range(256)]
    assert vocabulary[PIECES.index("▁ab")] == b" ab"


@pytest.mark.parametrize("text", ["ü🦙", "a ü b"])
def test_bytes_of_single_tokens_join_to_the_text(
    byte_level: Tokenizer, sentencepiece: Tokenizer, text: str
) -> None:
    tokenizer = TextTokenizer(byte_level, None)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text
    tokenizer = TextTokenizer(sentencepiece, None)
    joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode()
    # On its own, a piece at the start of a word has no space before it.
    assert joined.replace(" ", "") == text.replace(" ", "")
