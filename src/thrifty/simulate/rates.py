"""How fast one replica is: what a simulation knows of an engine, a model and a machine.

The numbers are measured (`thrifty simulate --fit`), taken from a recorded speed benchmark, or, for
the `echo` engine, from its options. They are plain data in a JSON file, so one machine can measure
and another simulate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from thrifty.errors import SimulationError
from thrifty.files import write_atomically

BLOCK_TOKENS = 64
"""Tokens in a block of the prefix cache where the trace does not say otherwise."""


class ReplicaRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The speeds and sizes of one kind of replica. Times are in seconds."""

    name: str
    slots: int
    """Requests that run at once; more wait in the gateway."""
    tpot_s: dict[int, float]
    """Time for each further token of an answer, by the number of answers that are generated
    together. In between, it is interpolated; beyond, it grows as between the last two."""
    prefill_s: float = 0.0
    """Time for each token of a prompt that is not cached."""
    fixed_s: float = 0.0
    """Time to the first token that no token of the prompt accounts for."""
    chunk_tokens: int = 0
    """Tokens of prompts that are computed in one step together with one token of each answer that
    is under way. 0: prompts disturb neither each other nor answers, as in the `echo` engine."""
    cache_tokens: int = 0
    """Tokens that the prefix cache holds; 0: none."""
    start_s: float = 0.0
    """Time until a new replica is ready."""
    price_per_hour: float = 0.0
    source: str = ""
    """Where the numbers come from, in words."""

    def tpot_at(self, streams: int) -> float:
        """The time for a token of each of `streams` answers."""
        known = sorted(self.tpot_s.items())
        if len(known) == 1 or streams <= known[0][0]:
            return known[0][1]
        at = next((i for i, (count, _) in enumerate(known) if count >= streams), len(known) - 1)
        (low, low_s), (high, high_s) = known[at - 1], known[at]
        slope = (high_s - low_s) / (high - low)
        return max(min(low_s, high_s), low_s + slope * (streams - low))

    @property
    def idle_ttft_s(self) -> float:
        """The least time to a first token, for a prompt of one token on an idle replica."""
        return self.fixed_s + self.prefill_s


def check_rates(rates: ReplicaRates, where: str) -> ReplicaRates:
    """The rates, if they can be. Raises `SimulationError` with every fault."""
    faults = []
    if rates.slots < 1:
        faults.append(f"slots is at least 1, not {rates.slots}")
    if not rates.tpot_s:
        faults.append("tpot_s needs one entry at least, such as {1: 0.02}")
    if any(streams < 1 for streams in rates.tpot_s):
        faults.append("the keys of tpot_s are numbers of streams, at least 1")
    # An engine whose tokens take no time cannot be told from one that does nothing.
    if any(not 0 < seconds < 1e6 for seconds in rates.tpot_s.values()):
        faults.append("the times in tpot_s are above 0")
    for field in ("prefill_s", "fixed_s", "start_s", "price_per_hour"):
        value = getattr(rates, field)
        if not 0 <= value < 1e9:
            faults.append(f"{field} is at least 0, not {value:g}")
    for field in ("chunk_tokens", "cache_tokens"):
        if getattr(rates, field) < 0:
            faults.append(f"{field} is at least 0, not {getattr(rates, field)}")
    if faults:
        raise SimulationError(f"{where}: " + "; ".join(faults))
    return rates


def load_rates(path: Path) -> ReplicaRates:
    """Read rates from a JSON file. Raises `SimulationError`."""
    try:
        rates = msgspec.json.decode(path.read_bytes(), type=ReplicaRates)
    except OSError as error:
        raise SimulationError(f"the rates {path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise SimulationError(
            f"the rates {path} are not as they should be: {error}. `thrifty simulate --fit URL "
            "--save-rates FILE` writes such a file"
        ) from None
    return check_rates(rates, str(path))


def save_rates(rates: ReplicaRates, path: Path) -> None:
    """Write rates as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(rates)).decode() + "\n")


def make_echo_rates(name: str, options: Mapping[str, Any], price_per_hour: float) -> ReplicaRates:
    """The rates of an `echo` replica, which its options state."""
    rates = ReplicaRates(
        name=name,
        slots=int(options["slots"]),
        tpot_s={1: float(options["tpot"])},
        prefill_s=float(options["prefill"]),
        fixed_s=float(options["ttft"]),
        cache_tokens=int(options["cache"]),
        start_s=float(options["load"]),
        price_per_hour=price_per_hour,
        source="the options of the echo engine",
    )
    if not options["tpot"]:
        raise SimulationError(
            "an echo engine without engine.tpot answers in no time, so nothing can be simulated; "
            "set engine.tpot (and engine.ttft), or pass --rates"
        )
    return check_rates(rates, name)


def make_benchmark_rates(
    name: str,
    values: Mapping[str, Any],
    *,
    slots: int,
    chunk_tokens: int,
    output_tokens: int,
    price_per_hour: float,
) -> ReplicaRates:
    """Rates from a recorded speed benchmark (`thrifty bench model`).

    It measured tokens per second with short prompts, so the speed of prefill is an estimate: a
    token of a prompt is taken to cost what one more stream adds to a step.
    """
    ttft_s = float(values["ttft_s"])
    tpot_s = {}
    for streams, speed in values["tokens_per_s"].items():
        together = int(streams)
        request_s = output_tokens * together / float(speed)
        tpot_s[together] = max(1e-6, (request_s - ttft_s) / max(1, output_tokens - 1))
    few, many = min(tpot_s), max(tpot_s)
    added_s = (tpot_s[many] - tpot_s[few]) / (many - few) if many > few else tpot_s[few]
    rates = ReplicaRates(
        name=name,
        slots=slots,
        tpot_s=tpot_s,
        prefill_s=max(added_s, 1e-6),
        fixed_s=ttft_s,
        chunk_tokens=chunk_tokens,
        start_s=float(values.get("load_s") or 0.0),
        price_per_hour=price_per_hour,
        source="the recorded speed benchmark; the speed of prefill and the prefix cache are not in "
        "it (estimated from the streams, and none)",
    )
    return check_rates(rates, name)
