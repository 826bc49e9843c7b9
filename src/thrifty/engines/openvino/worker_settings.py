"""What a worker process needs to know, apart from the module that imports OpenVINO."""

from __future__ import annotations

import msgspec

ACTIVATION_GROUP = 64
"""So many activations share a scale when they are multiplied with weights of few bits. Fewer are nearer, more are
faster; the engine's own default is 32.
"""


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
