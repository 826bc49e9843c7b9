"""The keys of the spec about what tokens cost."""

from __future__ import annotations

from pydantic import Field, model_validator

from thrifty.spec.section import Number, Section


class PricesSpec(Section):
    """What tokens cost, in the currency you think in. Budgets of keys are counted in it."""

    input: Number = Field(
        0.0, ge=0, allow_inf_nan=False, description="A million tokens of prompts."
    )
    cached_input: Number | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="A million tokens of prompts that an engine's prefix cache had. Default: as "
        "`input`.",
    )
    output: Number = Field(
        0.0, ge=0, allow_inf_nan=False, description="A million tokens of answers."
    )
    catalog: str | None = Field(
        None,
        pattern=r"^[^/\s]+/\S+$",
        description="`PROVIDER/MODEL` of the catalog genai-prices, such as `openai/gpt-4o`: its "
        "prices hold in place of the keys above. Needs `pip install 'thrifty[prices]'`. They are read "
        "when the spec is applied.",
    )

    @model_validator(mode="after")
    def _check_one_way(self) -> PricesSpec:
        stated = {"input", "cached_input", "output"} & self.model_fields_set
        if self.catalog is not None and stated:
            raise ValueError(f"has 'catalog' and {sorted(stated)[0]!r}; write one of them")
        return self
