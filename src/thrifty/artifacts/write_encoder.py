"""Write an encoder as a plain checkpoint: transformers' BERT with sentence-transformers' files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.artifacts.checkpoint import FloatArray
from thrifty.artifacts.embedding_sizes import ANY_SIZE, CUT_TO, SENTENCE_TRANSFORMERS, SIZES
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint
from thrifty.artifacts.inspect import read_json
from thrifty.artifacts.safetensors_file import write_safetensors

ENCODER_MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""The matrices of an encoder's layer, after `encoder.layer.N.`."""
ENCODER_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
EMBEDDING_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")

_BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
           "added_tokens.json", "modules.json", "sentence_bert_config.json",
           SENTENCE_TRANSFORMERS)  # fmt: skip


def write_encoder(checkpoint: EncoderCheckpoint, source: Path, target: Path) -> None:
    """Write the weights, in 16 bits, and the settings of `source` with the new dimensions.

    The tokenizer and the pooling are copied from `source`.
    """
    target.mkdir(parents=True, exist_ok=True)
    tensors = dict(read_encoder(checkpoint))
    write_safetensors(target / "model.safetensors", tensors)
    shape = checkpoint.shape
    config = read_json(source / "config.json")
    for key in ("_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    width = config.get("hidden_size")
    if shape.hidden_size != width:
        # Channels that went are not the last ones, so beginnings mean nothing any more.
        for key in (SIZES, ANY_SIZE, CUT_TO):
            config.pop(key, None)
    inner = len(tensors["encoder.layer.0.intermediate.dense.weight"])
    config |= {
        "architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size, "num_attention_heads": shape.heads,
        "intermediate_size": inner, "torch_dtype": "float16",
    }  # fmt: skip
    _write_json(target / "config.json", config)
    for name in _BESIDE:
        if name == SENTENCE_TRANSFORMERS and shape.hidden_size != width:
            continue
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    if (source / "modules.json").exists():
        for module in json.loads((source / "modules.json").read_text(encoding="utf-8")):
            _copy_module(source, target, str(module.get("path") or ""), shape.hidden_size)


def read_encoder(checkpoint: EncoderCheckpoint) -> Iterator[tuple[str, FloatArray]]:
    """Yield every tensor with its name."""
    tensors = checkpoint.tensors
    names = [f"embeddings.{table}.weight" for table in EMBEDDING_TABLES]
    norms = ["embeddings.LayerNorm"]
    linears = ["pooler.dense"] if "pooler.dense.weight" in tensors else []
    for layer in range(checkpoint.shape.layers):
        linears += [f"encoder.layer.{layer}.{name}" for name in ENCODER_MATRICES]
        norms += [f"encoder.layer.{layer}.{name}" for name in ENCODER_NORMS]
    names += [f"{name}.{kind}" for name in (*norms, *linears) for kind in ("weight", "bias")]
    for name in names:
        yield name, tensors.read_tensor(name)


def _copy_module(source: Path, target: Path, path: str, width: int) -> None:
    """Copy the settings of a sentence-transformers module, with the new width of embeddings."""
    settings = source / path / "config.json"
    if not path or Path(path).is_absolute() or ".." in Path(path).parts or not settings.exists():
        return
    value = read_json(settings)
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if key in value:
            value[key] = width
    (target / path).mkdir(parents=True, exist_ok=True)
    _write_json(target / path / "config.json", value)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
