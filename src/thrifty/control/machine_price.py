"""What a spec says that the machine costs an hour, and where that is from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from thrifty.errors import Problem
from thrifty.prices.table import load_prices
from thrifty.spec.load import LoadedSpec

STATED = "price_per_hour of the spec"


@dataclass(frozen=True)
class MachinePrice:
    """The machine's price; None where the spec says none."""

    per_hour: float | None
    basis: str


def find_machine_price(loaded: LoadedSpec) -> MachinePrice:
    """The machine's price. Raises `SpecError` where it is said twice, or its machine is not known."""
    spec = loaded.spec
    machine, written = spec.machine, "price_per_hour" in spec.model_fields_set
    if machine.instance is None and machine.watts is None:
        return MachinePrice(spec.price_per_hour, STATED) if written else MachinePrice(None, "")
    if written:
        message = "says what 'price_per_hour' says already; write one of them"
        loaded.refuse([Problem("machine", message)])
    if machine.watts is not None and machine.per_kwh is not None:
        return MachinePrice(
            machine.watts / 1000 * machine.per_kwh,
            f"electricity: {machine.watts:g} W at {machine.per_kwh:g} a kWh",
        )
    return _find_instance(loaded, machine.instance or "", spot=machine.spot)


def _find_instance(loaded: LoadedSpec, named: str, *, spot: bool) -> MachinePrice:
    table = load_prices()
    names = {f"{one.cloud}/{one.region}/{one.instance}": one for one in table.machines}
    wanted = named.split("/")
    found = [
        (name, one)
        for name, one in names.items()
        if named == name or (len(wanted) == 2 and wanted == [one.cloud, one.instance])
    ]
    if len(found) != 1:
        if found:
            hint = f"it is in several regions: {', '.join(name for name, _ in found)}"
        else:
            near = difflib.get_close_matches(named, [*names], 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            hint += "'thrifty prices' shows those that there are; or write 'price_per_hour'"
        loaded.refuse(
            [Problem("machine.instance", f"{named!r} is no machine of the table; {hint}")]
        )
    name, one = found[0]
    price = one.spot_per_hour if spot else one.per_hour
    if price is None:
        message = f"{name} has no spot price in the table; leave it out, or write 'price_per_hour'"
        loaded.refuse([Problem("machine.spot", message)])
        raise AssertionError("refused")
    kind = "spot price" if spot else "price"
    return MachinePrice(price, f"{kind} of {name}, {table.currency}, read on {table.read}")
