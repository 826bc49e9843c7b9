"""Vocabularies for tests, as GGUF metadata."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It isn't 12345 dogs, it's 3.14!",
    "def f(x):\n    return x ** 2  # squares\n\n\n\tif x == 10: pass",
    "Grüße aus Köln: naïve café, 東京タワー, Привет мир, 🦙🦙 and e\u0301",
    "WE'LL see what they've DONE; I'd say you're RIGHT... 2024-11-30 10:59",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_byte_level(size: int) -> tuple[list[str], list[str]]:
    """The tokens and merges of a byte-level BPE with `size` tokens; the first three are special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokens, merges


def make_gpt2_metadata(size: int, pre: str = "smollm", **more: Any) -> dict[str, Any]:
    """The metadata of a GGUF with a byte-level vocabulary."""
    tokens, merges = train_byte_level(size)
    assert len(tokens) == size
    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


# SentencePiece

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)),
          "▁", "a", "b", "c", "l", "ab", "▁a", "bc", "abc", "▁ab", "ca", "▁abc", "ll", "al", "all",
          "▁all", "▁▁", "aa", "aaa", "aaaa"]  # fmt: skip
TYPES = [UNKNOWN, CONTROL, CONTROL, *([BYTE] * 256), *([NORMAL] * (len(PIECES) - 259))]
SCORES = [0.0] * 259 + [-float(i) for i in range(len(PIECES) - 259)]


def llama_metadata(**more: Any) -> dict[str, Any]:
    """The metadata of a GGUF with a SentencePiece vocabulary."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }
