"""What a worker process needs to know, apart from the module that imports OpenVINO."""

from __future__ import annotations

import msgspec

ACTIVATION_GROUP = 64
"""So many activations share a scale when they are multiplied with weights of few bits. On SmolLM2-135M with
8-bit weights, 60 passages, KL divergence from the 16-bit weights: 0.0056 with it off, 0.0090 at 32
(OpenVINO's own default), 0.0119 at 64, 0.0209 at 192; at 64 it generates about a tenth faster than at 32
under load."""


class Settings(msgspec.Struct, frozen=True):
    """What a worker needs to know."""

    folder: str
    family: str
    threads: int
    kv_blocks: int = 0
    kv_precision: str = "u8"
    max_batch: int = 128
    prefill_chunk: int = 256
    prefix_cache: bool = True
    activation_group: int = 0
    eos_token_ids: tuple[int, ...] = ()
