"""A BERT checkpoint as GGUF, by the rules of llama.cpp's own converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from thrifty.artifacts.checkpoint import load_encoder
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
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def name_tensor(name: str) -> str:
    """GGUF's name for one of transformers'."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("encoder.layer."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def write_gguf_encoder(source: Path, path: Path, *, pooling: int = 1) -> Path:
    """Write the encoder in `source`, an uncased BERT, as a GGUF in 16 bits."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "bert")
    for key, value in {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "pooling_type": pooling,
    }.items():
        writer.add_uint32(f"bert.{key}", value)
    writer.add_float32("bert.attention.layer_norm_epsilon", config["layer_norm_eps"])
    writer.add_bool("bert.attention.causal", False)
    add_vocabulary(writer, source)
    for name, values in read_encoder(load_encoder(source)):
        if name.startswith("pooler."):
            continue
        small = values.ndim == 1 or "token_type" in name or "position" in name
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
    writer.add_token_type_count(2)
    for key, token in (
        ("padding", "[PAD]"), ("unknown", "[UNK]"), ("cls", "[CLS]"), ("seperator", "[SEP]"),
        ("bos", "[CLS]"), ("mask", "[MASK]"),
    ):  # fmt: skip
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", vocabulary[token])
