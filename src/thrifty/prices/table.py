"""The table of prices (`prices.json`), typed. Every row names its source and the day it was read."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime
from importlib.resources import files

import msgspec

OLD_AFTER_DAYS = 90
"""Prices change a few times a year, spot prices by the hour."""


class Accelerator(msgspec.Struct, frozen=True):
    """What is known of one kind of accelerator, per piece."""

    memory_gb: float
    memory_gb_s: float
    tflops: float
    """At 16 bits, dense, by its maker."""
    source: str


class Instance(msgspec.Struct, frozen=True):
    """A machine that a cloud rents out, in one region."""

    cloud: str
    region: str
    instance: str
    vcpus: int
    memory_gib: float
    per_hour: float
    spot_per_hour: float | None = None
    architecture: str = "x86_64"
    accelerator: str | None = None
    accelerators: int = 0
    memory_gb_s: float | None = None
    """Its share of the processor's memory bandwidth, where that was read."""
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        """The machine's memory, without its accelerators'."""
        return round(self.memory_gib * (1 << 30))


class FunctionPrice(msgspec.Struct, frozen=True):
    """What functions of a platform cost, in one region."""

    region: str
    per_gb_second: float
    """For each GiB of memory that a function was given, while it runs."""
    per_million_requests: float
    source: str


class ContainerPrice(msgspec.Struct, frozen=True):
    """What containers of a platform cost while they run, in one region."""

    region: str
    per_vcpu_hour: float
    per_gib_hour: float
    source: str


class PriceTable(msgspec.Struct, frozen=True):
    """All of it."""

    read: date
    currency: str
    note: str
    sources: dict[str, str]
    """Of the prices, by cloud."""
    accelerators: dict[str, Accelerator]
    functions: dict[str, FunctionPrice]
    """By the target of `thrifty deploy`."""
    containers: dict[str, ContainerPrice]
    """The same."""
    processors_note: str
    machines: tuple[Instance, ...]

    def of_cloud(self, cloud: str) -> tuple[Instance, ...]:
        """The machines of one cloud."""
        return tuple(one for one in self.machines if one.cloud == cloud)

    def age_days(self, today: date | None = None) -> int:
        """How many days ago the prices were read."""
        return ((today or datetime.now(UTC).date()) - self.read).days

    def describe_age(self, today: date | None = None) -> str:
        """How old the prices are, in words."""
        days = self.age_days(today)
        old = "; they are old, check them before you decide" if days > OLD_AFTER_DAYS else ""
        return f"{self.currency}, read on {self.read}, {days} days ago{old}"


@functools.cache
def load_prices() -> PriceTable:
    """The table that came with this release."""
    text = files("thrifty.prices").joinpath("prices.json").read_bytes()
    return msgspec.json.decode(text, type=PriceTable)


def clouds() -> list[str]:
    """The clouds that the table has."""
    return sorted(load_prices().sources)
