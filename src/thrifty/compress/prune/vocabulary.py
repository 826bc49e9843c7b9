"""A smaller vocabulary: a tokenizer, a model's settings and its embeddings without some tokens.

What stays is renumbered in the order of the old ids. `kept_tokens.json` in the model's folder
records which they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray, Tensors
from thrifty.compress.prune.token_choice import read_merges
from thrifty.errors import CompressionError

KEPT_TOKENS = "kept_tokens.json"
"""In a model's folder: `tokens_before`, and `kept`, the old id of each token in the order of the
new ids."""
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_SETTINGS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids", "force_words_ids",
)  # fmt: skip
"""The keys of `generation_config.json` that hold ids of tokens."""
_MIXED = ("forced_decoder_ids", "sequence_bias")
"""Those that hold them beside other numbers."""


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that stay."""

    old_ids: tuple[int, ...]
    """Ascending; a token's place among them is its new id."""

    @property
    def new_ids(self) -> dict[int, int]:
        """The new ids by the old ones."""
        return {old: new for new, old in enumerate(self.old_ids)}


class KeptRows:
    """Tensors of a decoder whose embedding table and head have only some of their rows."""

    def __init__(self, base: Tensors, rows: Sequence[int]) -> None:
        self._base = base
        self._rows: npt.NDArray[np.int64] = np.array(rows, np.int64)

    def __contains__(self, name: str) -> bool:
        return name in self._base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        found = self._base.read_tensor(name)
        return found[self._rows] if name in _TABLES else found


def keep_tokens(checkpoint: DecoderCheckpoint, kept: KeptTokens) -> DecoderCheckpoint:
    """The decoder with only these tokens."""
    shape, new = checkpoint.shape, kept.new_ids
    shape = replace(
        shape, vocab_size=len(kept.old_ids),
        eos_token_ids=tuple(new[one] for one in shape.eos_token_ids if one in new),
        bos_token_id=_find(new, shape.bos_token_id),
        pad_token_id=_find(new, shape.pad_token_id),
    )  # fmt: skip
    tensors = KeptRows(checkpoint.tensors, kept.old_ids)
    return DecoderCheckpoint(shape, tensors, checkpoint.config)


def list_named(checkpoint: DecoderCheckpoint, folder: Path) -> set[int]:
    """The tokens that a model's shape and the `generation_config.json` in `folder` name."""
    shape = checkpoint.shape
    named = {*shape.eos_token_ids, shape.bos_token_id, shape.pad_token_id}
    path = folder / "generation_config.json"
    if path.exists():
        _translate_settings(json.loads(path.read_text("utf-8")), lambda one: _note(named, one))
    return {one for one in named if one is not None and one < shape.vocab_size}


def cut_tokenizer(plan: Mapping[str, Any], kept: KeptTokens) -> dict[str, Any]:
    """A `tokenizer.json` with only these tokens, and the merges between them."""
    new = kept.new_ids
    model = plan["model"]
    vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
    merges = [
        [left, right]
        for left, right in read_merges(plan)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    found = {
        **plan,
        "model": {**model, "vocab": vocabulary, "merges": merges},
        "added_tokens": [
            {**one, "id": new[one["id"]]} for one in plan["added_tokens"] if one["id"] in new
        ],
        "post_processor": _translate_processor(plan.get("post_processor"), new),
    }
    padding = plan.get("padding")
    if padding is not None:
        found["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    return found


def write_kept(folder: Path, source: Path, kept: KeptTokens, tokens_before: int) -> None:
    """Cut the tokenizer and the settings in a model's folder, which are still those of `source`, and
    record which tokens stay. Raises `CompressionError`.
    """
    new = kept.new_ids
    path = folder / "tokenizer.json"
    _write(path, cut_tokenizer(json.loads(path.read_text("utf-8")), kept))
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text("utf-8"))
        added = config.get("added_tokens_decoder")
        if isinstance(added, dict):
            config["added_tokens_decoder"] = {
                str(new[int(old)]): token for old, token in added.items() if int(old) in new
            }
        _write(path, config)
    path = source / "generation_config.json"
    if path.exists():  # Else the one in `folder` was written with the new ids.
        settings = json.loads(path.read_text("utf-8"))
        _write(
            folder / path.name, _translate_settings(settings, lambda old: _require(new, old, path))
        )
    facts = {"tokens_before": tokens_before, "kept": list(kept.old_ids)}
    (folder / KEPT_TOKENS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _find(new: Mapping[int, int], old: int | None) -> int | None:
    return None if old is None else new.get(old)


def _note(found: set[int | None], one: int) -> int:
    found.add(one)
    return one


def _require(new: Mapping[int, int], old: int, path: Path) -> int:
    if old not in new:
        raise CompressionError(f"{path.name} names the token {old}, which the model does not have")
    return new[old]


def _translate_settings(
    settings: Mapping[str, Any], translate: Callable[[int], int]
) -> dict[str, Any]:
    """`settings` with every id of a token translated. Raises `CompressionError`."""
    if mixed := [key for key in _MIXED if settings.get(key) is not None]:
        raise CompressionError(
            f"generation_config.json sets {mixed[0]}, whose tokens cannot be renumbered; remove it"
        )

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(one) for one in value]
        is_id = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return translate(value) if is_id else value

    return {key: walk(value) if key in _SETTINGS else value for key, value in settings.items()}


def _translate_processor(processor: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new ids of the tokens that it adds."""
    if not isinstance(processor, dict):
        return processor
    found = dict(processor)
    if "processors" in found:
        found["processors"] = [_translate_processor(one, new) for one in found["processors"]]
    for name in ("sep", "cls"):
        if name in found:
            text, old = found[name]
            found[name] = [text, new[old]]
    special = found.get("special_tokens")
    if isinstance(special, dict):
        found["special_tokens"] = {
            name: {**one, "ids": [new[old] for old in one["ids"]]} for name, one in special.items()
        }
    return found
