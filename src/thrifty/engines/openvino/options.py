"""The options of the OpenVINO engine: the one place that names, describes and defaults them.

The spec is checked against `OpenVinoOptions`, `resolve` replaces every default that depends on the
model, and the result travels as plain values to the replica's server and its worker, which read
them by the same names. The documentation is generated from it, too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from thrifty.engines.base import TunableOption
from thrifty.errors import EngineError
from thrifty.graphs.arithmetic import ACTIVATION_GROUP
from thrifty.spec.section import Bytes, Count, Section


class OpenVinoOptions(Section):
    """Options of the OpenVINO engine."""

    kv_cache: Bytes | None = Field(
        None,
        description="Memory for the KV cache of each replica. Default: a share of what is free.",
    )
    kv_precision: Literal["u8", "f16"] = Field(
        "u8",
        description="How the KV cache is stored. `f16` takes twice the memory, and less time with "
        "many streams.",
    )
    context: Count | None = Field(
        None, ge=64, description="The longest prompt and answer together. Default: the model's."
    )
    max_batch: Count = Field(128, ge=1, description="How many answers are generated at once.")
    prefill_chunk: Count = Field(
        256,
        ge=32,
        description="How many tokens are computed in one step. Longer prompts are cut into chunks "
        "of this length, so that running answers go on meanwhile.",
    )
    prefix_cache: bool = Field(True, description="Reuse the KV cache of equal prefixes.")
    activation_group: Count | None = Field(
        None,
        ge=0,
        description="How many activations share a scale when they are multiplied with 8-bit or "
        "4-bit weights. Larger groups are faster and slightly less accurate. 0 turns "
        "quantization of activations off. Default: the largest that suits the model.",
    )


TUNABLE = {
    "kv_precision": TunableOption(("u8", "f16"), changes_answers=True),
    "max_batch": TunableOption((128, 16, 4), bounds_requests=True),
    "prefill_chunk": TunableOption((256, 1024)),
}
"""What `thrifty optimize` tries. The other options bound memory or change what is served."""
CAPACITY = ("kv_cache", "max_batch")
"""Options that no answer depends on, so that they are no part of a revision."""


def find_context_fault(options: OpenVinoOptions, limit: int) -> str | None:
    """Why the context that is asked for is not possible. A `limit` of 0 is not known."""
    if options.context is None or not limit or options.context <= limit:
        return None
    return (
        f"{options.context} tokens are asked for, and the model was made for at most {limit}; "
        "ask for no more than that"
    )


def resolve(options: OpenVinoOptions, note: dict[str, Any]) -> OpenVinoOptions:
    """`options` with the defaults of the model whose note is `note`. Raises `EngineError`."""
    limit = int(note["context_length"])
    fault = find_context_fault(options, limit)
    if fault:
        raise EngineError(f"engine.context: {fault}")
    group = options.activation_group
    if group is None:
        group = int(note.get("activation_group", ACTIVATION_GROUP))
    changes = {"context": options.context or limit, "activation_group": group}
    return options.model_copy(update=changes)
