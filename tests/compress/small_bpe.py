"""Small BPE tokenizers, trained on a few sentences."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = (  # noqa: SIM905
    "the quick brown fox jumps over the lazy dog and the quiet cat sleeps under the warm sun "
    "while children play in the garden near the old river where fishermen wait for the evening "
    "def return import self print for while class None True False lambda yield value values "
    "answer question capital city country mountain water winter summer language tokens model"
).split()
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]


def sentences(seed: int, count: int) -> list[str]:
    """Sentences of these words, the first ones far more often than the last."""
    import numpy as np

    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return [
        " ".join(draw.choice(WORDS, draw.integers(5, 15), p=weights / weights.sum())) + ".\n"
        for _ in range(count)
    ]


def make_byte_level(size: int = 600) -> Tokenizer:
    """Byte-level BPE, as GPT-2's, with special tokens behind the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*sentences(1, 400), *(f"{word}s {word.upper()}" for word in WORDS), "Привет мир" * 9],
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def make_byte_fallback(size: int = 500) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as Llama 2's, which begins every text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trained.train_from_iterator(
        sentences(2, 400), trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    )
    plan = json.loads(trained.to_str())
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    tokens += [one for one in plan["model"]["vocab"] if one not in tokens]
    merges = [tuple(one) for one in plan["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)}, merges=merges,
            unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def plan_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its `tokenizer.json`."""
    plan: dict[str, Any] = json.loads(tokenizer.to_str())
    return plan
