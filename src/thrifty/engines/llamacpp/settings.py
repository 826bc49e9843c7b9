"""What llama.cpp's process is started with."""

from __future__ import annotations

import msgspec


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one llama.cpp server; `worker.py` reads them by these names."""

    model: str
    """The path of the GGUF; of the first part, where it is split."""
    threads: int
    slots: int
    context: int
    """The longest prompt and answer of one slot together, in tokens."""
    chunk: int = 512
    """How many tokens of a prompt are computed in one step."""
    kv_precision: str = "f16"
    prefix_cache: bool = True
    saved_prompts_mb: int = 0
    """Memory for the KV caches of prompts whose slots others took."""
    speculation: str = "none"
    lookup_match: int = 12
    draft_tokens: int = 16
    draft_model: str = ""
    embeds: bool = False
    """Whether it embeds texts, and generates nothing."""
    ranks: bool = False
    """Whether it tells how relevant documents are to a query, and generates nothing."""
