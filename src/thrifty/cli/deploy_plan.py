"""`thrifty deploy plan` and `thrifty prices`: machines, speeds and prices."""

from __future__ import annotations

import re
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table
from thrifty.deploy.plan import Choice, Load, Shape, choose_version, find_shape, make_plan
from thrifty.deploy.service import DeployedVersion, make_service
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.prices.table import PriceTable, clouds, load_prices
from thrifty.spec import load_spec
from thrifty.spec.faults import suggest
from thrifty.units import parse_duration_s

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def run_plan(
    cloud: str,
    path: Path,
    *,
    rate: float,
    tpot: str,
    context: int,
    version: str | None,
    size: tuple[str | None, int | None, int | None],
    as_json: bool,
) -> None:
    """Rank the machines of a cloud."""
    if cloud not in clouds():
        raise ThriftyError(f"{cloud!r} is not a cloud; {suggest(cloud, clouds())}")
    table = load_prices()
    try:
        load = Load(rate, parse_duration_s(tpot), context)
    except ValueError as error:
        raise ThriftyError(f"--tpot {tpot}: {error}") from None
    chosen = choose_version(make_service(load_spec(path, environment={})), version)
    shape = _read_shape(chosen, size)
    choices = make_plan(chosen, shape, load, table.of_cloud(cloud), table)
    if as_json:
        print_json(
            {
                "cloud": cloud, "prices_read": str(table.read), "currency": table.currency,
                "age_days": table.age_days(), "load": vars(load), "model": vars(shape),
                "choices": [one.to_builtins() for one in choices],
            }
        )  # fmt: skip
        return
    _show(choices, table)


def _read_shape(version: DeployedVersion, size: tuple[str | None, int | None, int | None]) -> Shape:
    parameters, layers, kv_values = size
    if parameters is None and layers is None and kv_values is None:
        return find_shape(version, Store(find_home().models))
    if parameters is None or layers is None or kv_values is None:
        raise ThriftyError("--parameters, --layers and --kv-values belong together")
    return Shape(_parse_parameters(parameters), layers, kv_values)


def _parse_parameters(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise ThriftyError(f"--parameters {text}: write a number such as 135M or 8B")
    return round(float(match[1]) * _SCALES[match[2]])


def _show(choices: list[Choice], table: PriceTable) -> None:
    rows = [
        (
            one.instance, one.region, one.accelerator or "", one.count, f"{one.tokens_per_s:.0f}",
            f"{one.per_hour:.2f}", "" if one.spot_per_hour is None else f"{one.spot_per_hour:.2f}",
            f"{one.per_month:.0f}",
            "" if one.per_million_tokens is None else f"{one.per_million_tokens:.2f}",
        )
        for one in choices
        if one.meets_slo
    ]  # fmt: skip
    columns = (
        "instance", "region", "accelerator", "count", "tokens/s each", "an hour", "spot",
        "a month", "a million tokens",
    )  # fmt: skip
    if rows:
        print_table(columns, rows)
    else:
        print_line("No machine in the table meets the objective.")
    refused = [one for one in choices if not one.meets_slo]
    if refused:
        print_line("\nRuled out:")
    for one in refused:
        print_line(f"  {one.instance}: {one.why_not}")
    print_line(f"\nPrices: {table.describe_age()}. {table.note}")
    print_line(
        "Speeds of processors are those of the processor that was measured, of accelerators an upper "
        "bound; see docs/deploy/plan.md."
    )


def run_prices(*, as_json: bool) -> None:
    """Show the table of prices, its age and sources."""
    table = load_prices()
    if as_json:
        print_json(
            {
                "read": str(table.read), "age_days": table.age_days(), "currency": table.currency,
                "note": table.note, "sources": table.sources,
                "accelerators": {
                    name: {field: getattr(one, field) for field in one.__struct_fields__}
                    for name, one in table.accelerators.items()
                },
                "machines": [
                    {field: getattr(one, field) for field in one.__struct_fields__}
                    for one in table.machines
                ],
            }
        )  # fmt: skip
        return
    rows = [
        (
            one.cloud, one.region, one.instance, one.vcpus, f"{one.memory_gib:g}",
            f"{one.accelerators} x {one.accelerator}" if one.accelerator else "",
            f"{one.per_hour:.4f}",
            "" if one.spot_per_hour is None else f"{one.spot_per_hour:.4f}",
        )
        for one in table.machines
    ]  # fmt: skip
    columns = ("cloud", "region", "instance", "vCPUs", "GiB", "accelerators", "an hour", "spot")
    print_table(columns, rows)
    print_line(f"\nPrices: {table.describe_age()}. {table.note}")
    for cloud, source in table.sources.items():
        print_line(f"  {cloud}: {source}")
