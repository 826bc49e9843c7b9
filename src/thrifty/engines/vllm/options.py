"""The options of the vLLM engine: the one place that names, describes and defaults them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from thrifty.engines.base import Speculation, TunableOption
from thrifty.spec.section import Bytes, Count, Number, Section


class VllmOptions(Section):
    """Options of the vLLM engine."""

    python: str | None = Field(
        None,
        min_length=1,
        description="The Python interpreter of an environment that has vLLM. Default: an environment "
        "that Thrifty installs (`thrifty engines install vllm`).",
    )
    context: Count | None = Field(
        None, ge=64, description="The longest prompt and answer together. Default: the model's."
    )
    max_batch: Count = Field(128, ge=1, description="How many answers are generated at once.")
    prefill_chunk: Count | None = Field(
        None,
        ge=32,
        description="How many tokens are computed in one step; at least `max_batch`. Default: vLLM's "
        "choice.",
    )
    prefix_cache: bool = Field(True, description="Reuse the KV cache of equal prefixes.")
    kv_cache: Bytes | None = Field(
        None,
        description="Memory for the KV cache of each replica. Default: on a GPU what `memory_share` "
        "leaves, else a share of what is free.",
    )
    kv_precision: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        "auto",
        description="How the KV cache is stored. `auto` is the weights' own precision; the others take "
        "half the memory.",
    )
    memory_share: Number | None = Field(
        None,
        gt=0,
        le=1,
        description="For GPUs: the share of each one's memory that a replica may take. Default: 0.9, "
        "divided by the most replicas that a GPU has.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="What is computed in. Default: the checkpoint's own type."
    )
    quantization: Literal["fp8"] | None = Field(
        None,
        description="For GPUs: `fp8` rounds the weights of a 16-bit checkpoint when it is loaded. "
        "Checkpoints that are quantized already need nothing here.",
    )
    tensor_parallel: Count = Field(
        1, ge=1, description="For GPUs: over how many of them each replica is spread."
    )
    lora: str | None = Field(
        None,
        min_length=1,
        description="A folder with a LoRA adapter in PEFT's form, as safetensors. All answers are given "
        "with it.",
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
        min_length=1,
        description="With `speculation: draft`: a stored model with the same vocabulary, such as "
        "`small@v1`.",
    )
    draft_tokens: Count = Field(
        4, ge=1, le=64, description="With speculation: how many tokens are guessed at most."
    )
    lookup_match: Count = Field(
        2,
        ge=1,
        le=64,
        description="With `speculation: prompt_lookup`: how many tokens must be equal before a guess.",
    )
    sleep: bool = Field(
        False,
        description="For GPUs: let a replica give back its GPU memory and take it again, for fast starts.",
    )
    eager: bool = Field(
        False, description="Compile nothing: starts sooner, and generates more slowly."
    )

    @model_validator(mode="after")
    def _check(self) -> VllmOptions:
        if self.prefill_chunk is not None and self.prefill_chunk < self.max_batch:
            raise ValueError(
                f"'prefill_chunk' is {self.prefill_chunk}, less than {self.max_batch} ('max_batch'): a "
                "step computes at least one token for each answer"
            )
        if self.speculation != "auto" and (self.draft_model is not None) != (
            self.speculation == "draft"
        ):
            raise ValueError(
                "'draft_model' and 'speculation: draft' go together; set both or neither"
            )
        return self


TUNABLE = {
    "max_batch": TunableOption((128, 16), bounds_requests=True),
    "kv_precision": TunableOption(("auto", "fp8"), changes_answers=True),
    "speculation": TunableOption(("none", "prompt_lookup")),
}
"""What `thrifty optimize` tries. The other options bound memory or change what is served."""
CAPACITY = ("kv_cache", "max_batch", "memory_share", "python", "sleep")
"""Options that no answer depends on, so that they are no part of a revision."""
