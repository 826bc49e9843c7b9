"""Small rerankers with random weights, saved by transformers, and what PyTorch says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "Water boils at one hundred degrees.",
    "The capital of France is Paris!",
    "A cat sits on the mat, and a dog runs through the park",
    "Monday, Tuesday, Wednesday",
    "",
    "a b c d e " * 12,
]
QUERY = "What is the capital of France?"
CONTEXT = 96
_SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_labels": 1,
}  # fmt: skip


def write_reranker(folder: Path, kind: str, *, segments: int | None = None) -> Path:
    """A checkpoint of BERT (`bert`) or XLM-RoBERTa (`roberta`) with one label."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model: Any
    if kind == "bert":
        tokenizer = train_wordpiece()
        model = BertForSequenceClassification(
            BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=CONTEXT,
                       type_vocab_size=segments or 2, pad_token_id=0, **_SHAPE)
        )  # fmt: skip
    else:
        tokenizer = make_unigram()
        model = XLMRobertaForSequenceClassification(
            XLMRobertaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=CONTEXT + 2,
                             type_vocab_size=segments or 1, pad_token_id=1, **_SHAPE)
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        # Larger than at the beginning of a training, so that logits differ.
        scale = 1.0 if "word_embeddings" in name else 0.3
        torch.nn.init.normal_(parameter, float("LayerNorm.weight" in name), scale)
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def compute_logits(folder: Path, query: str, documents: Sequence[str]) -> npt.NDArray[np.float64]:
    """What transformers and PyTorch say, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    segments = model.config.type_vocab_size > 1
    found = []
    for document in documents:
        # As a list of pairs: beside a text alone, transformers takes an empty one for none.
        given = tokenizer([[query, document]], return_tensors="pt", return_token_type_ids=segments)
        with torch.no_grad():
            found.append(float(model(**given).logits[0, 0]))
    return np.array(found)


def train_wordpiece() -> Tokenizer:
    """An uncased BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, QUERY], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return tokenizer


def make_unigram() -> Tokenizer:
    """An XLM-RoBERTa's, but for the table of characters that its normalizer replaces. Its pieces are
    named here, because the trainer does not find the same ones each time.
    """
    words = [f"\u2581{word}" for text in (*TEXTS, QUERY) for word in text.split()]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(one, -6.0) for one in sorted(set("".join(words)))]
    pieces += [(one, -7.0) for one in sorted({word[:3] for word in words if len(word) > 1})]
    pieces += [(one, -9.0) for one in sorted({word[-3:] for word in words if len(word) > 4})]
    tokenizer = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in ("<s>", "</s>")],
    )  # fmt: skip
    return tokenizer
