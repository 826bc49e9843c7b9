"""Convert the tokenizer in a GGUF to a `tokenizer.json` for the tokenizers library.

Byte-level BPE (`gpt2`) needs its merges, its pre-tokenizer (`pre`) and its special tokens.
SentencePiece BPE (`llama`) has scores instead of merges, and so has the unigram of XLM-RoBERTa
(`t5`). Unknown pre-tokenizers are refused, because a tokenizer that is slightly wrong makes a model
worse without any sign of it.
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from thrifty.artifacts.gguf_file import GgufFile
from thrifty.errors import ArtifactError, FormatRefused, IntegrityError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
BYTE_LEVEL_KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
"""Supported pre-tokenizers, by llama.cpp's names."""

# The patterns of the models' own tokenizer.json files, by llama.cpp's names.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(file: GgufFile, *, pre: str | None = None) -> Tokenizer:
    """The tokenizer of `file`; `pre` takes the place of the pre-tokenizer that it names. Raises
    `FormatRefused` for unsupported kinds, and `IntegrityError` if its parts are inconsistent.
    """
    try:
        return _build_tokenizer(file, pre)
    except ArtifactError:
        raise
    except Exception as error:
        # The library raises bare exceptions, and damaged metadata can fail anywhere.
        raise IntegrityError(
            f"{file.path} contains a tokenizer that cannot be built: {error}; fetch it again"
        ) from None


def _build_tokenizer(file: GgufFile, pre: str | None) -> Tokenizer:
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise IntegrityError(f"{file.path} contains no vocabulary")
    if len(set(tokens)) != len(tokens):
        raise IntegrityError(f"{file.path} contains a vocabulary with duplicate tokens")
    if kind == "gpt2":
        tokenizer = _build_byte_level(file, tokens, pre)
    elif kind == "llama":
        tokenizer = _build_sentencepiece(file, tokens)
    elif kind in ("bert", "t5"):
        tokenizer = (_build_wordpiece if kind == "bert" else _build_unigram)(file, tokens)
        _add_special_tokens(tokenizer, file, tokens)
        _add_ends(tokenizer, file, tokens)
        return tokenizer
    else:
        raise FormatRefused(
            f"{file.path} has a tokenizer of the kind {kind!r}; gpt2, llama, bert and t5 are supported"
        )
    _add_special_tokens(tokenizer, file, tokens)
    # llama.cpp's defaults.
    default = kind == "llama" or file.metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    _add_bos(tokenizer, file, tokens, default=default)
    return tokenizer


def _build_byte_level(file: GgufFile, tokens: list[str], pre: str | None) -> Tokenizer:
    pre = pre or file.metadata.get("tokenizer.ggml.pre", "default")
    merges = [
        (left, right)
        for left, _, right in (
            merge.partition(" ") for merge in file.metadata.get("tokenizer.ggml.merges", [])
        )
    ]
    if not merges:
        raise IntegrityError(f"{file.path} contains a byte-level vocabulary without merges")
    if pre not in (*BYTE_LEVEL_KINDS, "default"):
        raise FormatRefused(
            f"{file.path} uses the pre-tokenizer {pre!r}, which is not supported; "
            "gpt-2, smollm, llama-bpe and qwen2 are. Use the model's safetensors instead"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return build_byte_level(pre, vocabulary, merges)


def build_byte_level(
    pre: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> Tokenizer:
    """A byte-level BPE with one of `BYTE_LEVEL_KINDS` as pre-tokenizer; `default` is `gpt-2`."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe", fuse_unk=False
        )
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in ("gpt-2", "default"):
        splitter: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre == "smollm":
        splitter = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    else:
        pattern = _LLAMA3 if pre == "llama-bpe" else _QWEN2
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        splitter = pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not scores:
        raise IntegrityError(f"{file.path} contains a SentencePiece vocabulary without scores")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[int(file.metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_from_scores(vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = normalizers.Replace(" ", "▁")
    steps = [normalizers.Prepend("▁"), replace] if prefix else [replace]
    tokenizer.normalizer = normalizers.Sequence(steps)
    ending = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    )
    return tokenizer


def _build_wordpiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """The WordPiece of uncased BERT. GGUF marks where words begin, the library where they go on."""
    types = file.metadata.get("tokenizer.ggml.token_type") or []
    vocabulary = {}
    for index, token in enumerate(tokens):
        special = index < len(types) and types[index] in (CONTROL, UNKNOWN)
        if special or (token.startswith("[") and token.endswith("]")):
            written = token
        elif token.startswith("▁"):
            written = token[1:]
        else:
            written = f"##{token}"
        vocabulary[written] = index
    if len(vocabulary) != len(tokens):
        raise IntegrityError(f"{file.path} contains a WordPiece vocabulary with duplicate tokens")
    unknown = tokens[int(file.metadata.get("tokenizer.ggml.unknown_token_id", 100))]
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _build_unigram(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """The SentencePiece unigram of XLM-RoBERTa, whose table of characters makes spaces of all white
    space.
    """
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not scores:
        raise IntegrityError(f"{file.path} contains a unigram vocabulary without scores")
    unknown = int(file.metadata.get("tokenizer.ggml.unknown_token_id", 2))
    pieces = [(token, float(score)) for token, score in zip(tokens, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    replaced = file.metadata.get("tokenizer.ggml.precompiled_charsmap")
    first = [normalizers.Precompiled(bytes(replaced))] if replaced else []
    tokenizer.normalizer = normalizers.Sequence(
        [
            *first,
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _add_ends(tokenizer: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    """What stands around a text of an encoder."""
    first = int(file.metadata.get("tokenizer.ggml.cls_token_id", 0)) or int(
        file.metadata.get("tokenizer.ggml.bos_token_id", 101)
    )
    last = int(file.metadata.get("tokenizer.ggml.seperator_token_id", 102))  # GGUF's own spelling
    begin, end = tokens[first], tokens[last]
    pair = f"{begin} $A {end} $B:1 {end}:1"
    if int(file.metadata.get("tokenizer.ggml.token_type_count", 2)) == 1:
        pair = f"{begin} $A {end} {end} $B {end}"  # RoBERTa knows one kind of segment
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=pair, special_tokens=[(begin, first), (end, last)]
    )


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges in SentencePiece's order: highest score first."""
    merges = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_special_tokens(tokenizer: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    types = file.metadata.get("tokenizer.ggml.token_type") or []
    control = [tokens[i] for i, kind in enumerate(types) if kind == CONTROL]
    defined = [tokens[i] for i, kind in enumerate(types) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in defined])


def _add_bos(tokenizer: Tokenizer, file: GgufFile, tokens: list[str], *, default: bool) -> None:
    if not file.metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    bos_id = file.metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is None:
        return
    bos = tokens[int(bos_id)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, int(bos_id))]
    )
