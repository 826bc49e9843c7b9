"""`thrifty simulate`: recorded traffic on replicas that exist in a simulation alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.engines.base import check_options
from thrifty.engines.machine import Machine, detect_machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import SimulationError
from thrifty.home import find_home
from thrifty.service import resolve_target
from thrifty.simulate.from_spec import find_rates, find_setup, measure_spec
from thrifty.simulate.rates import ReplicaRates, load_rates, save_rates
from thrifty.simulate.report import COLUMNS, describe_conditions, describe_sizing, make_row
from thrifty.simulate.run import Simulated, SimulateRequest, check_policies, run_simulation
from thrifty.simulate.trace import TraceOptions
from thrifty.spec import Spec
from thrifty.spec.load import LoadedSpec
from thrifty.types import OnProgress
from thrifty.units import parse_duration_s


@dataclass(frozen=True)
class Changes:
    """What the command line says otherwise than the spec."""

    ttft_p95: str | None
    tpot_p95: str | None
    least: int | None
    most: int | None
    routing: str | None
    start: str | None


@dataclass(frozen=True)
class Stretch:
    """The part of the trace, and how it is scaled."""

    speed: float
    scale: float
    tokens: float
    skip: str | None
    length: str | None
    warm_up: str


def run_simulate(
    target: str,
    *,
    trace: Path,
    policies: Sequence[str],
    rates: Sequence[Path],
    fit: str | None,
    key: str | None,
    save: Path | None,
    changes: Changes,
    stretch: Stretch,
    seed: int,
    report: Path | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Simulate, and show what came of it."""
    if png is not None:
        from thrifty.simulate.plot import check_plots

        check_plots()
    if save is not None and fit is None:
        raise SimulationError("--save-rates keeps what --fit measures; add --fit URL")
    if fit is not None and rates:
        raise SimulationError("--fit measures the rates and --rates reads them; give one of both")
    names = check_policies(policies)
    options = _parse_stretch(stretch, seed)
    warm_up_s = (_parse_time("--warm-up", stretch.warm_up) or 0.0) / stretch.speed
    loaded = _load_one(target)
    machine = detect_machine()
    with show_progress() as on_progress:
        known = _find_all_rates(loaded, machine, rates, fit, key, on_progress)
        if save is not None:
            save_rates(known[0], save)
            tell(f"The rates are in {save}")
        setups = [
            find_setup(
                loaded.spec, one, seed=seed,
                ttft_s=_parse_time("--ttft-p95", changes.ttft_p95),
                tpot_s=_parse_time("--tpot-p95", changes.tpot_p95),
                least=changes.least, most=changes.most, routing=changes.routing,
                start_s=_parse_time("--start", changes.start), warm_up_s=warm_up_s,
            )
            for one in known
        ]  # fmt: skip
        found = run_simulation(SimulateRequest(trace, options, setups, names), on_progress)
    if report is not None:
        from thrifty.simulate.report import write_report

        write_report(found, report)
        tell(f"The report is {report}")
    if png is not None:
        from thrifty.simulate.plot import plot_simulation

        plot_simulation(found, png)
        tell(f"The plots are in {png}")
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _load_one(target: str) -> LoadedSpec:
    """The one version that is simulated."""
    loaded = resolve_target(target)
    if loaded.spec.deployments or len(loaded.spec.versions) > 1:
        raise SimulationError(
            "a simulation is of one deployment with one version; write a spec with that one alone"
        )
    engine = choose_engine(loaded.spec.engine.kind, None)
    loaded.refuse(check_options(engine, loaded.spec))
    return loaded


def _find_all_rates(
    loaded: LoadedSpec,
    machine: Machine,
    files: Sequence[Path],
    fit: str | None,
    key: str | None,
    on_progress: OnProgress,
) -> list[ReplicaRates]:
    if files:
        known = [load_rates(path) for path in files]
        if len({one.name for one in known}) < len(known):
            raise SimulationError("rates with the same name cannot be told apart; change `name`")
        return known
    spec: Spec = loaded.spec
    if fit is not None:
        return [measure_spec(spec, machine, fit, key, on_progress)]
    return [find_rates(spec, Store(find_home().models), machine)]


def _parse_stretch(stretch: Stretch, seed: int) -> TraceOptions:
    for name in ("speed", "scale", "tokens"):
        value = getattr(stretch, name)
        if not 0 < value < math.inf:
            raise SimulationError(f"--{name} is above 0, not {value:g}")
    skip_s = _parse_time("--skip", stretch.skip)
    length_s = _parse_time("--length", stretch.length)
    return TraceOptions(
        stretch.speed, stretch.scale, stretch.tokens,
        0.0 if skip_s is None else skip_s, math.inf if length_s is None else length_s, seed,
    )  # fmt: skip


def _parse_time(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise SimulationError(f"{name}: {error}") from None


def _show(found: Simulated) -> None:
    print_table(COLUMNS, [make_row(outcome) for outcome in found.policies.values()])
    print_line()
    for sizing in found.sizings:
        print_line(describe_sizing(sizing))
    print_line()
    for line in describe_conditions(found):
        print_line(line)
