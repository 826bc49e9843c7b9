"""The keys of the spec about the loop: when the next version is made, from what, and how it is let in."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from thrifty.spec.judges import DEPLOYMENT, RemoteJudge, check_judge
from thrifty.spec.section import Count, Duration, Integer, Number, Section

Method = Literal["auto", "sft", "dpo", "kto"]


class TrustedUser(Section):
    """A user whose judgement counts more than others'."""

    user: str = Field(min_length=1, description="The `user` of requests and feedback.")
    tenant: str = Field("", description="The tenant of the user. Default: requests without a key.")


class ImproveGuardsSpec(Section):
    """What keeps a few users, and the model itself, from deciding what is learned."""

    per_user: Count = Field(
        50, ge=1, description="The newest so many judged answers of one user count."
    )
    per_tenant: Count = Field(
        10_000, ge=1, description="The newest so many judged answers of one tenant count."
    )
    users: Count = Field(
        3,
        ge=1,
        description="So many users are behind what is learned, or nothing is: one user is behind at "
        "most one row in so many.",
    )
    agree: Count = Field(
        1,
        ge=1,
        le=100,
        description="An answer counts as liked or disliked if so many users say so. The same answer "
        "to the same prompt is one answer.",
    )
    outliers: bool = Field(
        True,
        description="Leave out users whose share of likes cannot be chance beside that of the "
        "others, and corrections that are far longer than the others.",
    )
    own: Number = Field(
        0.5,
        ge=0,
        le=1,
        description="At most this share of the rows teaches answers of versions that the loop made.",
    )
    trusted: tuple[TrustedUser, ...] = Field(
        (),
        description="Users who are trusted: names, or mappings of `user` and `tenant`. A share of what "
        "they judge is never learned, and judges the gate.",
    )
    holdout: Number = Field(
        0.3,
        gt=0,
        lt=1,
        description="The share of the prompts that trusted users judged which is held out.",
    )

    @field_validator("trusted", mode="before")
    @classmethod
    def _as_users(cls, value: Any) -> Any:
        listed = (value,) if isinstance(value, str | dict) else () if value is None else value
        return tuple({"user": one} if isinstance(one, str) else one for one in listed)


class ImproveTrainSpec(Section):
    """How the next version is trained. Defaults are those of `thrifty train`, except that `dpo` also
    learns the chosen answers, because users' pairs are few.
    """

    epochs: Number | None = Field(None, gt=0, description="Passes over the rows.")
    minutes: Number | None = Field(
        None, gt=0, description="How long it takes, in place of `epochs`."
    )
    learning_rate: Number | None = Field(None, gt=0, description="The highest learning rate.")
    lora_rank: Integer | None = Field(
        None, ge=0, le=1024, description="The rank of the low-rank changes; 0 trains all weights."
    )
    adapter: bool = Field(
        False,
        description="Keep the low-rank changes as an adapter beside the base model, as `thrifty train "
        "--adapter`, so that a version takes megabytes.",
    )
    beta: Number | None = Field(
        None, gt=0, description="For `dpo` and `kto`: how much the model is held to what it was."
    )
    sft_weight: Number = Field(
        1.0, ge=0,
        description="For `dpo`: how much of the loss of `sft` on the chosen answers is added.",
    )  # fmt: skip
    window: Count | None = Field(None, ge=32, description="Rows with more tokens are set aside.")
    processes: Count = Field(
        1, ge=1, le=64, description="How many processes train together, one for each GPU."
    )
    seed: Integer = Field(0, description="The same seed gives the same training.")
    augment: str | None = Field(
        None,
        description="Other forms of rows, as `thrifty train --augment`: `none`, `noise`, `auto`. "
        "Default: none.",
    )

    @model_validator(mode="after")
    def _check(self) -> ImproveTrainSpec:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("has 'epochs' and 'minutes'; write one of them")
        if self.adapter and self.lora_rank == 0:
            raise ValueError(
                "has 'adapter' and 'lora_rank: 0', which trains all weights; write one"
            )
        return self

    @field_validator("augment")
    @classmethod
    def _check_augment(cls, value: str | None) -> str | None:
        names = set(value.replace(" ", "").split(",")) if value is not None else set()
        if not names <= {"none", "noise", "auto"} or names > {"none"}:
            raise ValueError(f"{value!r} is not none, noise, auto, or auto,noise")
        return value


class ImproveGateSpec(Section):
    """What the next version must pass, as with `thrifty gate`."""

    data: tuple[str, ...] = Field(
        (),
        description="Sets, files and built sets that it is judged on. Default: those of "
        "`thrifty gate`.",
    )
    margin: Number = Field(0.05, gt=0, lt=0.5, description="How much worse is not worse.")
    items: Count = Field(600, ge=1, description="The most questions of a set.")
    tokens: Count = Field(4096, ge=256, description="Tokens of each domain.")
    speed: bool = Field(True, description="Whether speed and memory are compared.")
    judge: str | RemoteJudge | None = Field(
        None,
        description="Who compares the answers to each question, blind: a Python function as "
        "`module:function`, `deployment:NAME`, or a mapping of `url`, `model` and `key_env`.",
    )

    @field_validator("judge")
    @classmethod
    def _check_judge(cls, value: Any) -> Any:
        return check_judge(value)

    @field_validator("data", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value


class ImproveSpec(Section):
    """The loop: feedback becomes data, the next version is trained, judged and released. Without
    `every`, `feedback`, `drift` and `teacher` a run begins by command: `thrifty improve run DEPLOYMENT`.
    """

    every: Duration | None = Field(
        None, ge=60, description="How often a run begins by itself. Default: never."
    )
    feedback: Count | None = Field(
        None,
        ge=1,
        description="A run begins by itself after so much new feedback. Default: never.",
    )
    drift: bool = Field(
        False,
        description="A run begins by itself after a day on which the questions or the answers are others "
        "than before.",
    )
    teacher: str | RemoteJudge | None = Field(
        None,
        description="A better model that answers anew what users disliked: `deployment:NAME`, or a "
        "mapping of `url`, `model` and `key_env`. A run begins by itself when it is another one.",
    )
    method: Method = Field(
        "auto",
        description="What is learned: `dpo` from pairs, `sft` from corrections, `kto` from thumbs; "
        "`auto` takes the first of these of which there are `rows` enough.",
    )
    rows: Count = Field(50, ge=10, description="With fewer rows, nothing is learned.")
    data: tuple[str, ...] = Field(
        (),
        description="Built data sets of the same kind (`NAME` or `NAME@vN`) to learn from, too.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="The name of the models and data sets that it makes. Default: the deployment's.",
    )
    guards: ImproveGuardsSpec = Field(
        default_factory=lambda: ImproveGuardsSpec(), description="Which feedback counts."
    )
    train: ImproveTrainSpec = Field(
        default_factory=lambda: ImproveTrainSpec(), description="The training."
    )
    gate: ImproveGateSpec = Field(
        default_factory=lambda: ImproveGateSpec(), description="The gate."
    )
    approve: bool = Field(
        False,
        description="Wait for `thrifty improve approve` before the version is released.",
    )
    release: dict[str, Any] = Field(
        {},
        description="The plan of the release, with the keys of docs/releases.md.",
    )

    @field_validator("data", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("teacher")
    @classmethod
    def _check_teacher(cls, value: str | RemoteJudge | None) -> str | RemoteJudge | None:
        named = isinstance(value, str) and value.startswith(DEPLOYMENT) and value != DEPLOYMENT
        if isinstance(value, str) and not named:
            raise ValueError(
                f"{value!r} is not 'deployment:NAME'; a model elsewhere is a mapping of 'url' and "
                "'model'"
            )
        return value
