"""Checkpoints of BERT and XLM-RoBERTa as GGUF, by the rules of llama.cpp's own converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.write_encoder import read_encoder
from thrifty.text.tokenizer import TextTokenizer

NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "pooler.dense": "cls",
    "classifier": "cls.output",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}
MEAN, RANK = 1, 4
"""GGUF's numbers for ways of pooling."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def name_tensor(name: str) -> str:
    """GGUF's name for one of transformers'."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("encoder.layer."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def write_gguf_encoder(source: Path, path: Path, *, pooling: int = MEAN) -> Path:
    """Write the encoder or reranker in `source` as a GGUF in 16 bits."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "bert")
    checkpoint = load_encoder(source)
    for key, value in {
        "context_length": checkpoint.shape.context_length,
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "pooling_type": pooling,
    }.items():
        writer.add_uint32(f"bert.{key}", value)
    writer.add_float32("bert.attention.layer_norm_epsilon", config["layer_norm_eps"])
    writer.add_bool("bert.attention.causal", False)
    kind = json.loads((source / "tokenizer.json").read_text())["model"]["type"]
    (add_unigram if kind == "Unigram" else add_vocabulary)(writer, source)
    writer.add_token_type_count(config["type_vocab_size"])
    tensors = dict(read_encoder(checkpoint))
    heads = ("classifier", "classifier.dense", "classifier.out_proj")
    for name in (f"{head}.{suffix}" for head in heads for suffix in ("weight", "bias")):
        if name in checkpoint.tensors:
            tensors[name] = checkpoint.tensors.read_tensor(name)
    for name, values in tensors.items():
        if name.startswith("pooler.") and pooling != RANK:
            continue
        if "position_embeddings" in name:
            values = values[checkpoint.shape.first_position :]
        small = values.ndim == 1 or "token_type" in name or "position" in name or "class" in name
        writer.add_tensor(name_tensor(name), values.astype(np.float32 if small else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: Any, source: Path) -> None:
    """The vocabulary, with the beginnings of words marked in place of their continuations."""
    vocabulary = TextTokenizer.load(source).tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    written = [
        one if one in SPECIAL else one[2:] if one.startswith("##") else f"▁{one}" for one in tokens
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(written)
    writer.add_token_types([3 if one in SPECIAL else 1 for one in tokens])
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    for key, token in (
        ("padding", "[PAD]"), ("unknown", "[UNK]"), ("cls", "[CLS]"), ("seperator", "[SEP]"),
        ("bos", "[CLS]"), ("eos", "[SEP]"), ("mask", "[MASK]"),
    ):  # fmt: skip
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", vocabulary[token])


def add_unigram(writer: Any, source: Path) -> None:
    """The vocabulary of an XLM-RoBERTa with its scores."""
    pieces = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    types = {"<unk>": 2, **dict.fromkeys(("<s>", "<pad>", "</s>"), 3)}
    writer.add_token_types([types.get(piece, 1) for piece, _ in pieces])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(True)
    ids = dict(zip(special, range(4), strict=True))
    for key, token in (
        ("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>"), ("seperator", "</s>"),
        ("padding", "<pad>"), ("cls", "<s>"),
    ):  # fmt: skip
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[token])
