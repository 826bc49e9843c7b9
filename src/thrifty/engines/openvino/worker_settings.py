"""What a worker process is told when it starts. Imports neither OpenVINO nor pydantic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    from thrifty.engines.openvino.options import OpenVinoOptions


class Settings(msgspec.Struct, frozen=True):
    """What a worker has to load, and how."""

    folder: str
    family: str
    threads: int
    values: dict[str, Any]
    """`OpenVinoOptions`, resolved, as `model_dump` gives them."""
    kv_blocks: int = 0
    """Blocks of KV cache; 0 for encoders."""
    eos_token_ids: tuple[int, ...] = ()
    smaller_sizes: tuple[int, ...] = ()
    """What embeddings may be cut to."""
    lora: tuple[str, float] | None = None
    """The file of the adapter that answers are given with, and what its changes are multiplied by."""
    needs_exact_sums: bool = False
    """Whether the weights are in a scheme that some processors compute wrongly."""

    @property
    def options(self) -> OpenVinoOptions:
        """The engine's options. The server has checked them, so the worker does without pydantic,
        whose import takes 0.3 s and 11 MB: at run time this is a plain namespace.
        """
        return cast("OpenVinoOptions", SimpleNamespace(**self.values))
