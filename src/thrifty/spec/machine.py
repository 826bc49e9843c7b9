"""What the machine costs, where `price_per_hour` does not say it."""

from __future__ import annotations

from pydantic import Field, model_validator

from thrifty.spec.section import Number, Section


class MachineSpec(Section):
    """What this machine costs an hour: the price of a cloud's machine, or of its electricity."""

    instance: str | None = Field(
        None,
        min_length=1,
        description="A machine of the table that `thrifty prices` shows, as `CLOUD/INSTANCE` or "
        "`CLOUD/REGION/INSTANCE`.",
    )
    spot: bool = Field(False, description="With `instance`: its spot price.")
    watts: Number | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What the machine draws while it serves, as you measured it at the plug; with "
        "`per_kwh`.",
    )
    per_kwh: Number | None = Field(
        None, gt=0, allow_inf_nan=False, description="What a kilowatt-hour costs; with `watts`."
    )

    @model_validator(mode="after")
    def _check_one_way(self) -> MachineSpec:
        if (self.watts is None) != (self.per_kwh is None):
            raise ValueError("needs both 'watts' and 'per_kwh'")
        if self.instance is not None and self.watts is not None:
            raise ValueError(
                "has both 'instance' and 'watts'; a cloud's price includes the electricity"
            )
        if self.spot and self.instance is None:
            raise ValueError("has 'spot' without 'instance', whose spot price is meant")
        return self
