"""The options of the llama.cpp engine, and the forms of weights that it makes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from thrifty.engines.base import Speculation, TunableOption, WeightScheme
from thrifty.errors import EngineError
from thrifty.spec.section import Bytes, Count, Section

DEFAULT_CONTEXT = 4096
"""Each slot reserves the whole of its context, so the default is bounded."""
DEFAULT_SLOTS = 4


class LlamaCppOptions(Section):
    """Options of the llama.cpp engine."""

    context: Count | None = Field(
        None,
        ge=64,
        description="The longest prompt and answer together. Each slot reserves memory for it. "
        f"Default: the model's, at most {DEFAULT_CONTEXT}.",
    )
    slots: Count = Field(
        DEFAULT_SLOTS,
        ge=1,
        le=256,
        description="How many answers are generated at once. Further requests wait.",
    )
    kv_precision: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16",
        description="How the KV cache is stored. `q8_0` takes half the memory of `f16`, `q4_0` a "
        "quarter; both change answers slightly.",
    )
    prefill_chunk: Count = Field(
        512,
        ge=32,
        description="How many tokens of prompts are computed in one step. Longer prompts are cut "
        "into chunks of this length.",
    )
    prefix_cache: bool = Field(
        True, description="Reuse the KV cache of a slot for a prompt that begins like its last one."
    )
    saved_prompts: Bytes = Field(
        0,
        description="Memory for KV caches of earlier conversations whose slot others have taken, "
        "from which they are restored. Default: none.",
    )
    speculation: Speculation = Field(
        "none",
        description="Guess several tokens ahead and check them in one step. `prompt_lookup` guesses what "
        "followed the same words before, which helps where answers copy from prompts. `draft` asks "
        "a smaller model (`draft_model`). Which answers are likely does not change. `auto` takes what "
        "the benchmark of `load` wins by.",
    )
    draft_model: str | None = Field(
        None,
        description="With `speculation: draft`: a stored model with the same vocabulary, such as "
        "`small@v1`.",
    )
    draft_tokens: Count = Field(
        16, ge=1, le=64, description="With speculation: how many tokens are guessed at most."
    )
    lookup_match: Count = Field(
        12,
        ge=1,
        le=64,
        description="With `speculation: prompt_lookup`: how many tokens must be equal before a guess.",
    )


TUNABLE = {
    "slots": TunableOption((DEFAULT_SLOTS, 16, 1), bounds_requests=True),
    "kv_precision": TunableOption(("f16", "q8_0"), changes_answers=True),
    "speculation": TunableOption(("none", "prompt_lookup")),
}
"""What `thrifty optimize` tries."""
CAPACITY = ("slots", "saved_prompts")
"""Options that no answer depends on, so that they are no part of a revision."""
SCHEMES = {
    "none": WeightScheme(2.0),
    "int8": WeightScheme(1.0625),
    "int4": WeightScheme(0.6),
}
"""`none` leaves a GGUF as it is, and makes float16 of other checkpoints."""
GGML_TYPES = {"none": "F16", "int8": "Q8_0", "int4": "Q4_0"}
"""GGML's names of these types."""
AUTO_SCHEMES = ("int8", "none")
LOSSY_SCHEMES = ("int4",)
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of one value in the KV cache, with scales."""


def find_context_fault(options: LlamaCppOptions, limit: int) -> str | None:
    """Why the context that is asked for is not possible. A `limit` of 0 is not known."""
    if options.context is None or not limit or options.context <= limit:
        return None
    return (
        f"{options.context} tokens are asked for, and the model was made for at most {limit}; "
        "ask for no more than that"
    )


def resolve(options: LlamaCppOptions, limit: int) -> LlamaCppOptions:
    """`options` with the defaults of a model made for `limit` tokens. Raises `EngineError`."""
    fault = find_context_fault(options, limit)
    if fault:
        raise EngineError(f"engine.context: {fault}")
    context = options.context or min(limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    speculation = "none" if options.speculation == "auto" else options.speculation
    return options.model_copy(update={"context": context, "speculation": speculation})
