"""The tokenizer in a GGUF produces the tokens that the model was trained on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import (
    CONTROL,
    CORPUS,
    PIECES,
    SCORES,
    SPECIAL,
    USER_DEFINED,
    llama_metadata,
    make_gpt2_metadata,
    train_byte_level,
)
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.errors import FormatRefused, IntegrityError

SIZE = 400
# From the tokenizer.json of Llama-3.1-8B and of Qwen2.5-0.5B.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF with this metadata."""
    path = Llama(layers=1).write_gguf(folder / "model.gguf", extra=metadata)
    return build_tokenizer(GgufFile(path))


def make_reference(pre: str) -> Tokenizer:
    """The tokens by the tokenizers library from the model's own tokenizer.json."""
    tokens, merges = train_byte_level(SIZE)
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[(a, b) for a, b in (m.split(" ") for m in merges)],
        ignore_merges=pre == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = {
        "gpt-2": whole,
        "default": whole,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), bare]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), bare]
        ),
    }[pre]
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


PRES = ("gpt-2", "default", "smollm", "llama-bpe", "qwen2")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        pre: (
            read(folder / pre, make_gpt2_metadata(SIZE, pre, add_bos_token=False)),
            make_reference(pre),
        )
        for pre in PRES
    }


TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from([*SPECIAL, *CORPUS, " ", "  ", "\n", "\r\n\r\n", "\t", "123", "4567", "e\u0301",
                         "'LL", "'s", "!!!\n", "🦙", "\u3000", "a"]),
        max_size=12,
    ).map("".join),
)  # fmt: skip


@pytest.mark.parametrize("pre", PRES)
@given(text=TEXT)
def test_byte_level_tokens_are_those_of_the_tokenizers_library(
    pairs: dict[str, tuple[Tokenizer, Tokenizer]], pre: str, text: str
) -> None:
    ours, reference = pairs[pre]
    assert ours.encode(text).ids == reference.encode(text).ids


@pytest.mark.parametrize("pre", PRES)
@given(text=TEXT)
def test_byte_level_text_survives_the_round_trip(
    pairs: dict[str, tuple[Tokenizer, Tokenizer]], pre: str, text: str
) -> None:
    import unicodedata

    ours, _ = pairs[pre]
    expected = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    if not any(token in text for token in SPECIAL):
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["ab", "Ġ12345", "Ġit", "'s"]),
        ("smollm", ["ab", "Ġ", "1", "2", "3", "4", "5", "Ġit", "'s"]),
        ("llama-bpe", ["ab", "Ġ", "123", "45", "Ġit", "'s"]),
        ("qwen2", ["ab", "Ġ", "1", "2", "3", "4", "5", "Ġit", "'s"]),
    ],
)
def test_each_way_of_splitting_treats_digits_as_its_models_do(
    pairs: dict[str, tuple[Tokenizer, Tokenizer]], pre: str, pieces: list[str]
) -> None:
    ours, _ = pairs[pre]
    found = [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str("ab 12345 it's")]
    assert found == pieces


def test_special_tokens_are_one_token_and_are_left_out_of_text(
    pairs: dict[str, tuple[Tokenizer, Tokenizer]],
) -> None:
    ours, _ = pairs["smollm"]
    ids = ours.encode("<|im_start|>a<|im_end|>").ids
    assert ids == [1, ours.token_to_id("a"), 2]
    assert ours.decode(ids) == "a"


def test_user_defined_tokens_are_one_token_and_are_text(tmp_path: Path) -> None:
    metadata = make_gpt2_metadata(SIZE)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<tool_call>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], USER_DEFINED]
    tokenizer = read(tmp_path, metadata)
    ids = tokenizer.encode("x<tool_call>y").ids
    assert ids[1] == SIZE
    assert tokenizer.decode(ids) == "x<tool_call>y"


@pytest.mark.parametrize(
    ("pre", "stated", "expected"),
    [("smollm", None, False), ("smollm", True, True), ("smollm", False, False),
     ("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)  # fmt: skip
def test_first_token_is_added_as_llama_cpp_does(
    tmp_path: Path, pre: str, stated: bool | None, expected: bool
) -> None:
    metadata = make_gpt2_metadata(SIZE, pre, add_bos_token=stated)
    tokenizer = read(tmp_path, metadata)
    assert (tokenizer.encode("a").ids[0] == 1) is expected
    assert tokenizer.encode("a", add_special_tokens=False).ids == [tokenizer.token_to_id("a")]


# SentencePiece


def encode_slowly(text: str, prefix: bool = True) -> list[int]:
    """SentencePiece's BPE as in its paper: repeatedly merge the pair with the highest score.

    Kudo & Richardson 2018, 1808.06226; of equal pairs, the leftmost comes first.
    """
    ids = {piece: index for index, piece in enumerate(PIECES)}
    text = ("▁" if prefix and text else "") + text.replace(" ", "▁")
    symbols = list(text)
    while True:
        pairs = [
            (SCORES[ids[a + b]], -at)
            for at, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in ids and ids[a + b] >= 259
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return read(tmp_path_factory.mktemp("llama"), llama_metadata(add_bos_token=False))


@given(text=st.text(alphabet="abcl \nü🦙", max_size=20))
def test_sentencepiece_tokens_are_those_of_the_slow_algorithm(llama: Tokenizer, text: str) -> None:
    assert llama.encode(text).ids == encode_slowly(text)


@given(text=st.text(alphabet="abcl \nü🦙", max_size=20))
def test_sentencepiece_text_survives_the_round_trip(llama: Tokenizer, text: str) -> None:
    assert llama.decode(llama.encode(text).ids) == text


def test_sentencepiece_adds_the_first_token_unless_told_not_to(tmp_path: Path) -> None:
    assert read(tmp_path / "1", llama_metadata()).encode("a").ids == [1, PIECES.index("▁a")]
    ids = read(tmp_path / "2", llama_metadata(add_bos_token=False)).encode("a").ids
    assert ids == [PIECES.index("▁a")]


def test_sentencepiece_without_a_space_in_front(tmp_path: Path) -> None:
    metadata = llama_metadata(add_space_prefix=False, add_bos_token=False)
    tokenizer = read(tmp_path, metadata)
    assert tokenizer.encode("a b").ids == encode_slowly("a b", prefix=False)
    assert tokenizer.decode(tokenizer.encode(" a").ids) == " a"


# refusals


def test_unknown_way_of_splitting_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        FormatRefused,
        match=r"the pre-tokenizer 'deepseek-llm', which is not supported.*safetensors instead",
    ):
        read(tmp_path, make_gpt2_metadata(SIZE, "deepseek-llm"))


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    metadata = {**make_gpt2_metadata(SIZE), "tokenizer.ggml.model": "rwkv"}
    with pytest.raises(
        FormatRefused, match=r"tokenizer of the kind 'rwkv'; gpt2, llama, bert and t5 are supported"
    ):
        read(tmp_path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.tokens": None}, "contains no vocabulary"),
        ({"tokenizer.ggml.merges": None}, "without merges"),
        ({"tokenizer.ggml.merges": ["no such"]}, "cannot be built"),
        ({"tokenizer.ggml.merges": ["single"]}, "cannot be built"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "with duplicate tokens"),
        ({"tokenizer.ggml.token_type": [CONTROL] * 9999}, "cannot be built"),
        ({"tokenizer.ggml.bos_token_id": 9999, "tokenizer.ggml.add_bos_token": True}, "be built"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(IntegrityError, match=message):
        read(tmp_path, {**make_gpt2_metadata(SIZE), **change})


def test_sentencepiece_without_scores_is_refused(tmp_path: Path) -> None:
    metadata = {**llama_metadata(), "tokenizer.ggml.scores": None}
    with pytest.raises(IntegrityError, match="SentencePiece vocabulary without scores"):
        read(tmp_path, metadata)
