"""What the machine costs an hour, and where that is from: what specs say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from thrifty.db.database import look_at_database
from thrifty.db.desired import read_desired
from thrifty.errors import Problem, SpecError
from thrifty.fleet.controller_note import find_database_url
from thrifty.home import Home
from thrifty.prices.table import load_prices
from thrifty.spec import LoadedSpec, Spec, load_spec

STATED = "price_per_hour of the spec"
OPTION, VARIABLE = "--price-per-hour", "THRIFTY_PRICE_PER_HOUR"


@dataclass(frozen=True)
class MachinePrice:
    """The machine's price; None where the spec says none."""

    per_hour: float | None
    basis: str


def find_machine_price(loaded: LoadedSpec) -> MachinePrice:
    """The machine's price. Raises `SpecError`, with lines, as `read_machine_price` does."""
    try:
        return read_machine_price(loaded.spec)
    except SpecError as error:
        loaded.refuse(list(error.problems))
        raise


def find_price_here(
    home: Home,
    *,
    stated: float | None = None,
    spec: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> MachinePrice:
    """What this machine costs an hour where no service is started: `stated` by an option, by a
    `spec`, by `THRIFTY_PRICE_PER_HOUR`, or by what was last applied in `home`; None where nobody
    said. Raises `SpecError`, also where the spec does not say it, and `DatabaseError`.
    """
    if stated is not None:
        return MachinePrice(stated, OPTION)
    loaded = load_spec(spec, environment=environment)
    price = find_machine_price(loaded)
    if spec is not None:
        if price.per_hour is None:
            loaded.refuse(
                [
                    Problem(
                        "price_per_hour", "is not set, and neither is 'machine'; write one of them"
                    )
                ]
            )
        return replace(price, basis=f"{price.basis} ({spec})")
    if price.per_hour is not None:
        return replace(price, basis=VARIABLE)
    with look_at_database(find_database_url(home), in_use=True) as database:
        service = None if database is None else read_desired(database).service
    if service is None or service.capacity.stated_per_hour is None:
        return MachinePrice(None, "")
    basis = f"{service.capacity.basis}, as applied in {home.root}"
    return MachinePrice(service.capacity.stated_per_hour, basis)


def find_reported_price(spec: Spec) -> float:
    """What the machine costs an hour for reports that need some price: the default of
    `price_per_hour` where the spec says none. Raises `SpecError`.
    """
    price = read_machine_price(spec)
    return spec.price_per_hour if price.per_hour is None else price.per_hour


def read_machine_price(spec: Spec) -> MachinePrice:
    """The machine's price. Raises `SpecError` where it is said twice, or the machine is not known."""
    machine, written = spec.machine, "price_per_hour" in spec.model_fields_set
    if machine.instance is None and machine.watts is None:
        return MachinePrice(spec.price_per_hour, STATED) if written else MachinePrice(None, "")
    if written:
        raise _fault("machine", "says what 'price_per_hour' says already; write one of them")
    if machine.watts is not None and machine.per_kwh is not None:
        return MachinePrice(
            machine.watts / 1000 * machine.per_kwh,
            f"electricity: {machine.watts:g} W at {machine.per_kwh:g} a kWh",
        )
    return _find_instance(machine.instance or "", spot=machine.spot)


def _find_instance(named: str, *, spot: bool) -> MachinePrice:
    table = load_prices()
    names = {f"{one.cloud}/{one.region}/{one.instance}": one for one in table.machines}
    wanted = named.split("/")
    found = [
        (name, one)
        for name, one in names.items()
        if named == name or wanted == [one.cloud, one.instance]
    ]
    if not found:
        near = difflib.get_close_matches(named, [*names], 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        hint += "'thrifty prices' shows those that there are; or write 'price_per_hour'"
        raise _fault("machine.instance", f"{named!r} is no machine of the table; {hint}")
    if len(found) > 1:
        places = ", ".join(name for name, _ in found)
        raise _fault("machine.instance", f"{named!r} is in several regions; write one of {places}")
    name, one = found[0]
    price = one.spot_per_hour if spot else one.per_hour
    if price is None:
        message = f"{name} has no spot price in the table; leave it out, or write 'price_per_hour'"
        raise _fault("machine.spot", message)
    kind = "spot price" if spot else "price"
    return MachinePrice(price, f"{kind} of {name}, {table.currency}, read on {table.read}")


def _fault(path: str, message: str) -> SpecError:
    return SpecError([Problem(path, message)])
