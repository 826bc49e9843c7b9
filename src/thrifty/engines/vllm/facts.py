"""What the files of a checkpoint or an adapter say, as far as starting vLLM depends on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.artifacts import stop_tokens
from thrifty.artifacts.inspect import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from thrifty.artifacts.lora import read_config
from thrifty.artifacts.settings import read_integer, read_token_ids
from thrifty.engines.vllm.command_line import LORA_RANKS
from thrifty.errors import EngineError, FormatRefused
from thrifty.text.tokenizer import TextTokenizer
from thrifty.units import format_bytes

AUTO_KV_SHARE = 0.25
"""On a processor, the KV cache gets at most this share of the free memory by default..."""
AUTO_KV_CONTEXTS = 16
"""... and at most this many full contexts."""
LEAST_KV_BYTES = 64_000_000


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter."""

    rank: int
    sha256: str
    """Of its files."""


def read_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end an answer, by all files of the checkpoint. Raises `IntegrityError`."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.exists():
            found += read_token_ids(read_json(path), "eos_token_id", path)
    found += stop_tokens.read_ends(folder)
    found += TextTokenizer.load(folder).find_turn_ends()
    return tuple(dict.fromkeys(found))


def count_kv_bytes(folder: Path, context: int, free_bytes: float) -> int:
    """How much memory the KV cache of a replica gets on a processor where nothing is said: a share of
    what is free, and no more than some full contexts take. Raises `EngineError` where one context
    does not fit.
    """
    given = AUTO_KV_SHARE * free_bytes
    per_token = _count_bytes_per_token(read_json(folder / "config.json"), folder / "config.json")
    if per_token and context:
        one = per_token * context
        if one > 0.8 * free_bytes:
            raise EngineError(
                f"the KV cache of one answer of {context} tokens takes {format_bytes(one)}, and "
                f"{format_bytes(free_bytes)} are free for this replica; set a shorter engine.context"
            )
        # A little more than whole contexts: vLLM rounds down to its blocks.
        given = max(1.1 * one, min(given, AUTO_KV_CONTEXTS * one))
    return max(LEAST_KV_BYTES, int(given))


def find_kv_fault(kv_cache: int | None, copies: int, free_bytes: float) -> str | None:
    """Why the KV caches that are asked for do not fit; None if they do."""
    wanted = (kv_cache or 0) * copies
    if wanted <= free_bytes:
        return None
    return (
        f"{copies} x {format_bytes(kv_cache or 0)} of KV cache do not fit the "
        f"{format_bytes(max(0, free_bytes))} that weights and libraries leave; ask for less"
    )


def _count_bytes_per_token(config: dict[str, Any], path: Path) -> int:
    """In 16 bits; 0 for models whose attention is of another kind."""
    if "kv_lora_rank" in config or "num_hidden_layers" not in config:
        return 0
    layers = read_integer(config, "num_hidden_layers", path)
    heads = read_integer(config, "num_attention_heads", path, default=0, least=0)
    hidden = read_integer(config, "hidden_size", path, default=0, least=0)
    kv_heads = read_integer(config, "num_key_value_heads", path, default=heads, least=0)
    head_dim = read_integer(
        config, "head_dim", path, default=hidden // heads if heads else 0, least=0
    )
    return 2 * 2 * layers * kv_heads * head_dim


def read_lora(folder: Path) -> Lora:
    """The adapter in `folder`. Raises `FormatRefused` for none that vLLM loads safely."""
    rank, _ = read_config(folder)
    if rank > LORA_RANKS[-1]:
        raise FormatRefused(
            f"{folder / ADAPTER_CONFIG} has the rank {rank}, and vLLM takes up to {LORA_RANKS[-1]}; "
            "merge it into its base (thrifty train without --adapter), or train one of a lower rank"
        )
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Lora(rank, digest.hexdigest())
