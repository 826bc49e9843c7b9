"""Encoders and rerankers as named float arrays, a description of their shape, and how they pool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts.checkpoint import Prefixed, Tensors
from thrifty.artifacts.inspect import (
    find_safetensors,
    read_architecture,
    read_first_position,
    read_json,
)
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.settings import read_integer, read_number
from thrifty.errors import FormatRefused, IntegrityError

ENCODERS = frozenset({"BertModel"})
"""Supported encoder architectures."""
RERANKERS = frozenset(
    {"BertForSequenceClassification", "RobertaForSequenceClassification",
     "XLMRobertaForSequenceClassification"}
)  # fmt: skip
"""Supported architectures of rerankers."""


@dataclass(frozen=True)
class EncoderShape:
    """The dimensions and constants of a BERT-like encoder, and its pooling: `mean`, `cls`, or
    `rank` for rerankers, which give one logit.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    pooling: str = "mean"
    normalize: bool = True
    pad_token_id: int = 0
    first_position: int = 0
    """The position of a text's first token."""


@dataclass(frozen=True)
class EncoderCheckpoint:
    """An encoder's shape and weights."""

    shape: EncoderShape
    tensors: Tensors


def load_encoder(folder: Path) -> EncoderCheckpoint:
    """Load the encoder or reranker in `folder`. Raises `FormatRefused` if it is not supported."""
    path = folder / "config.json"
    config = read_json(path)
    architecture = read_architecture(config)
    if architecture not in ENCODERS | RERANKERS:
        raise FormatRefused(
            f"the encoder architecture {architecture!r} is not supported; supported are: "
            f"{', '.join(sorted(ENCODERS | RERANKERS))}"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise FormatRefused(f"the activation {config['hidden_act']!r} is not supported; gelu is")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise FormatRefused("only absolute position embeddings are supported")
    pooling, normalize = _read_pooling(folder)
    if architecture in RERANKERS:
        pooling, normalize = "rank", False
    first_position = read_first_position(config, path)
    shape = EncoderShape(
        architecture=architecture,
        layers=read_integer(config, "num_hidden_layers", path),
        hidden_size=read_integer(config, "hidden_size", path),
        heads=read_integer(config, "num_attention_heads", path),
        vocab_size=read_integer(config, "vocab_size", path),
        context_length=read_integer(config, "max_position_embeddings", path) - first_position,
        norm_epsilon=read_number(config, "layer_norm_eps", path, default=1e-12),
        pooling=pooling,
        normalize=normalize,
        pad_token_id=read_integer(config, "pad_token_id", path, default=0, least=0),
        first_position=first_position,
    )
    if shape.hidden_size % shape.heads:
        raise IntegrityError(
            f"{path} is damaged: {shape.hidden_size} dimensions cannot be split into {shape.heads} "
            "heads"
        )
    tensors = Prefixed(SafetensorsFiles(find_safetensors(folder)), ("", "bert.", "roberta."))
    return EncoderCheckpoint(shape, tensors)


def _read_pooling(folder: Path) -> tuple[str, bool]:
    """The pooling that sentence-transformers' `modules.json` asks for, and whether to normalize.

    Without that file: mean pooling, normalized.
    """
    modules_path = folder / "modules.json"
    if not modules_path.exists():
        return "mean", True
    try:
        modules = json.loads(modules_path.read_text(encoding="utf-8"))
        kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules}
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise IntegrityError(f"{modules_path} is damaged: {error!r}; fetch it again") from None
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise FormatRefused(f"the sentence-transformers module {min(unknown)!r} is not supported")
    if "Pooling" not in kinds:
        return "mean", "Normalize" in kinds
    pooling = read_json(folder / kinds["Pooling"] / "config.json")
    # Since 5.4, sentence-transformers writes `pooling_mode: "mean"`; before, a key for each mode.
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    named = pooling.get("pooling_mode") or modes
    modes = [named] if isinstance(named, str) else list(map(str, named))
    known = {"mean": "mean", "pooling_mode_mean_tokens": "mean", "cls": "cls",
             "pooling_mode_cls_token": "cls"}  # fmt: skip
    if len(modes) != 1 or modes[0] not in known:
        wanted = ", ".join(modes) or "that the model names"
        raise FormatRefused(f"the pooling {wanted} is not supported; mean and cls are")
    return known[modes[0]], "Normalize" in kinds
