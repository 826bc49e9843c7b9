"""The options of the OpenVINO engine: the one place that names, describes and defaults them.

The spec is checked against `OpenVinoOptions`, `resolve` replaces every default that depends on the
model, and the result travels as plain values to the replica's server and its worker, which read
them by the same names. The documentation is generated from it, too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from thrifty.engines.base import TunableOption
from thrifty.errors import EngineError
from thrifty.graphs.arithmetic import ACTIVATION_GROUP
from thrifty.spec.section import Bytes, Count, Number, Section


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
    speculation: Literal["none", "prompt_lookup", "auto"] = Field(
        "none",
        description="Guess tokens ahead, and check them in one step. `prompt_lookup` guesses what "
        "followed the same words before, which is faster where answers repeat their prompts and slower "
        "elsewhere; the prefix cache is then off. `auto` takes it where the benchmark of `load` wins "
        "by it, and leaves it once it does not pay.",
    )
    speculation_tokens: Count = Field(
        4, ge=1, le=16, description="How many tokens are guessed in each step."
    )
    speculation_least: Number | None = Field(
        None,
        ge=1,
        description="Leave look-ups once steps give fewer tokens to an answer than this. Default: "
        "never; `auto` sets what it measured.",
    )
    speculation_streams: Count | None = Field(
        None,
        ge=1,
        description="Leave look-ups once clearly more answers than this run at once. Default: never; "
        "`auto` sets what it measured.",
    )
    activation_group: Count | None = Field(
        None,
        ge=0,
        description="How many activations share a scale when they are multiplied with 8-bit or "
        "4-bit weights. Larger groups are faster and slightly less accurate. 0 turns "
        "quantization of activations off. Default: the largest that suits the model.",
    )

    @field_validator("speculation", mode="before")
    @classmethod
    def _refuse_draft(cls, value: Any) -> Any:
        if value == "draft":
            raise ValueError(
                "draft models are not offered by the engine 'openvino', because it would accept their "
                "tokens by a rule that changes sampled answers; take prompt_lookup, or another engine"
            )
        return value

    @property
    def looks_up(self) -> bool:
        """Whether guesses are looked up, from the start on."""
        return self.speculation == "prompt_lookup"


TUNABLE = {
    "kv_precision": TunableOption(("u8", "f16"), changes_answers=True),
    "max_batch": TunableOption((128, 16, 4), bounds_requests=True),
    "prefill_chunk": TunableOption((256, 1024)),
}
"""What `thrifty optimize` tries. The other options bound memory or change what is served."""
CAPACITY = ("kv_cache", "max_batch", "speculation_least", "speculation_streams")
"""Options that no answer depends on, so that they are no part of a revision."""


def find_context_fault(options: OpenVinoOptions, limit: int) -> str | None:
    """Why the context that is asked for is not possible. A `limit` of 0 is not known."""
    if options.context is None or not limit or options.context <= limit:
        return None
    return (
        f"{options.context} tokens are asked for, and the model was made for at most {limit}; "
        "ask for no more than that"
    )


def find_speculation_fault(options: OpenVinoOptions) -> str | None:
    """Why options that are written cannot go together with look-ups."""
    if not options.looks_up or "prefix_cache" not in options.model_fields_set:
        return None
    if not options.prefix_cache:
        return None
    return (
        "cannot be on with speculation: prompt_lookup, because the engine would keep what was "
        "guessed wrongly; leave it out"
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
    changes: dict[str, Any] = {"context": options.context or limit, "activation_group": group}
    if options.speculation == "auto":
        changes["speculation"] = "none"
    return options.model_copy(update=changes)
