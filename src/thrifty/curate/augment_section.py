"""The keys of a recipe about other forms of its rows: noise, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from thrifty.data.augmentation import MADE, NEGATIVES, NEW_ROWS, Augmentation
from thrifty.data.noise import KINDS, Noise
from thrifty.spec.section import Integer, Number, Section

Share = Annotated[Number, Field(ge=0, le=1)]
Few = Annotated[Integer, Field(ge=1, le=8)]
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


def as_list(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]
"""A list of names; a single one may stand alone."""


def short(key: str) -> BeforeValidator:
    """A section that may be written as the value of one of its keys, or as `true` or `false`."""

    def expand(value: Any) -> Any:
        if value is True:
            return {}
        if value is False:
            return None
        return value if value is None or isinstance(value, Mapping | BaseModel) else {key: value}

    return BeforeValidator(expand)


class NoiseSection(Section):
    """Slips on what users say, drawn while a training reads."""

    rows: Share = Field(0.5, description="The share of rows that get any in an epoch.")
    words: Share = Field(0.05, description="The share of words of such a row that get a slip.")
    kinds: Names = Field(KINDS, description="typing, case, spacing, speech.")
    seed: Integer = Field(0, description="Decides which.")


class Paraphrase(Section):
    """Other wordings of what a user says last; the answer stays."""

    forms: Few = Field(2, description="Wordings of a row.")


class BackTranslation(Section):
    """What a user says last, translated and back."""

    languages: Names = Field(("de",), description="Through which, as ISO 639-1 codes.")

    @model_validator(mode="after")
    def _check(self) -> BackTranslation:
        unknown = [one for one in self.languages if one not in LANGUAGES]
        if unknown or not self.languages:
            raise ValueError(f"languages are {', '.join(LANGUAGES)}, not {unknown}")
        return self


class Evolve(Section):
    """New rows: what a user asks made harder, with an answer of the model."""

    share: Share = Field(0.5, description="Of the rows.")


class SelfInstruct(Section):
    """New rows: other requests in the manner of some of the rows, with answers of the model."""

    rows: Annotated[Integer, Field(ge=1)] = Field(100, description="How many.")


class Negatives(Section):
    """For encoders: texts that look like an answer to the query and are none."""

    count: Few = Field(2, description="Texts of a row.")


class Price(Section):
    """What a million tokens cost, in the currency that is shown."""

    read: Annotated[Number, Field(ge=0)] = Field(0.0, description="Tokens of requests.")
    written: Annotated[Number, Field(ge=0)] = Field(0.0, description="Tokens of answers.")


class Augment(Section):
    """Other forms of the rows that are learned. Held-out rows stay as they are."""

    keep: Literal["always", "auto"] = Field(
        "always", description="`auto`: a training tries each, and uses what gains on held-out rows."
    )
    noise: Annotated[NoiseSection | None, short("rows")] = Field(None, description="Slips.")
    paraphrase: Annotated[Paraphrase | None, short("forms")] = Field(
        None, description="Other wordings."
    )
    back_translation: Annotated[BackTranslation | None, short("languages")] = Field(
        None, description="Other wordings, by translation."
    )
    evolve: Annotated[Evolve | None, short("share")] = Field(None, description="Harder requests.")
    self_instruct: Annotated[SelfInstruct | None, short("rows")] = Field(
        None, description="Other requests."
    )
    negatives: Annotated[Negatives | None, short("count")] = Field(
        None, description="Hard negative texts."
    )
    model: str | None = Field(
        None, description="Who makes them: a deployment of this home, or a server's URL."
    )
    url_model: str | None = Field(None, description="Which of a URL's models; default: its first.")
    key_env: str | None = Field(None, description="The environment variable that holds the key.")
    through: Literal["batch", "requests"] | None = Field(
        None,
        description="The Batch API or single requests. Default: `batch` for a deployment, which "
        "then gives it what capacity is left, and `requests` for a URL.",
    )
    streams: Annotated[Integer, Field(ge=1, le=256)] = Field(
        8, description="Single requests at the same time."
    )
    judge: bool | str = Field(
        True,
        description="Ask the model whether what it made is what was asked for. A name: ask that "
        "deployment of this home instead, which did not write it.",
    )
    encoder: str | None = Field(
        None, description="An encoder, as `thrifty pull` names it, that compares meanings as well."
    )
    similarity: Share = Field(
        0.75, description="Other wordings have at least this cosine to what was said."
    )
    price: Price = Field(Price(), description="For the estimate.")

    @model_validator(mode="after")
    def _check(self) -> Augment:
        if self.methods and self.model is None:
            raise ValueError(f"{', '.join(self.methods)} need a 'model' that makes them")
        if not self.methods and self.noise is None:
            if self.keep == "always":
                raise ValueError(f"names none of noise, {', '.join(MADE)}")
            # `augment: auto` tries what needs no model.
            self.__dict__["noise"] = NoiseSection()
        if self.noise is not None:
            Noise(**self.noise.model_dump())
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """What a model makes."""
        return tuple(name for name in MADE if getattr(self, name) is not None)

    def refuse(self, kind: str) -> str | None:
        """Why rows of a kind cannot have this."""
        if kind == "text":
            return "changes what users say, and rows of the kind text hold nothing that they say"
        for name in self.methods:
            wanted = {"sft"} if name in NEW_ROWS else {"contrastive"} if name == NEGATIVES else None
            if wanted is not None and kind not in wanted:
                return f"has '{name}', which is for rows of the kind {wanted.pop()}, not {kind}"
        return None

    def for_training(self) -> dict[str, Any]:
        """What a training does by default, as JSON (`data.augmentation`)."""
        noise = None if self.noise is None else Noise(**self.noise.model_dump())
        return Augmentation(noise, self.methods, self.keep == "auto").as_dict()
