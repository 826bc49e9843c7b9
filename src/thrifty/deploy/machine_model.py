"""How fast a model would be on another machine, from what was measured on ours.

Processors: the time of one step for B streams is

    overhead + bytes read / bandwidth + B x operations of one token / rate

with three constants that were fitted to measurements of SmolLM2-135M with 16-, 8- and 4-bit weights
and 1, 8 and 32 streams on two virtual processors of an AMD EPYC (`benchmarks/results/engines.json`).
Rates grow with the number of virtual processors; bandwidth too, up to the machine's share. Other
processors are taken to be as fast as that one, which nobody has measured: `benchmarks/
machine_model.py` compares prediction and measurement on the machine that it runs on.

Accelerators: a roofline, the larger of the time to read all bytes and that to do all operations.
It is an upper bound; servers stay below it.
"""

from __future__ import annotations

from dataclasses import dataclass

OVERHEAD_PER_LAYER_S = 0.000253
"""What a step costs for each layer, whatever it computes."""
GB_S_PER_VCPU = 15.0
"""Bandwidth that one virtual processor reaches by itself."""
GFLOPS_PER_VCPU = {"none": 45.0, "int8": 53.0, "w8a8": 53.0, "w7a8": 53.0, "int4": 59.0}
"""Operations of one virtual processor, by the form of the weights."""
SHARE_GB_S_PER_VCPU = 4.8
"""The share of a machine's bandwidth for each virtual processor where its own was not read: that of
AWS Graviton3."""
BASE_VCPUS = 2
"""The machine of the measurements had so many."""
FITTED_ERROR = 0.15
"""The largest error of the fit on the measurements that it was made from; a test holds it to that."""


@dataclass(frozen=True)
class Speed:
    """How fast a processor is beside the one of the measurements."""

    memory: float = 1.0
    """Factor of overhead and bandwidth."""
    compute: float = 1.0
    """Factor of the rates."""


AS_MEASURED = Speed()


@dataclass(frozen=True)
class ModelSize:
    """What the speed of a decoder depends on."""

    parameters: int
    layers: int
    weights_bytes: int
    kv_bytes_per_token: float
    scheme: str = "none"

    @property
    def operations_per_token(self) -> float:
        """One multiplication and one addition for each weight."""
        return 2.0 * self.parameters


def find_bandwidth(vcpus: float, share_gb_s: float | None) -> float:
    """GB/s of a machine: what its processors reach, within their share of it. The machine of the
    measurements reached more than its share, so that small machines are not held to theirs.
    """
    share = share_gb_s if share_gb_s is not None else SHARE_GB_S_PER_VCPU * vcpus
    return min(GB_S_PER_VCPU * vcpus, max(share, GB_S_PER_VCPU * BASE_VCPUS))


def predict_step_s(
    model: ModelSize,
    streams: int,
    context: int,
    vcpus: float,
    share_gb_s: float | None = None,
    speed: Speed = AS_MEASURED,
) -> float:
    """The time of one step on a processor; each stream gets one token by it."""
    reading_s, computing_s = split_step_s(model, streams, context, vcpus, share_gb_s)
    return reading_s / speed.memory + computing_s / speed.compute


def split_step_s(
    model: ModelSize, streams: int, context: int, vcpus: float, share_gb_s: float | None = None
) -> tuple[float, float]:
    """The parts of a step: overhead and reading, and computing."""
    bandwidth = find_bandwidth(vcpus, share_gb_s) * 1e9
    rate = GFLOPS_PER_VCPU.get(model.scheme, GFLOPS_PER_VCPU["none"]) * 1e9 * vcpus
    read = model.weights_bytes + streams * context * model.kv_bytes_per_token
    reading_s = OVERHEAD_PER_LAYER_S * model.layers + read / bandwidth
    return reading_s, streams * model.operations_per_token / rate


def fit_speed(parts: list[tuple[float, float]], measured_s: list[float]) -> Speed:
    """The factors of a processor from two steps that were measured on it, one with few streams and
    one with many; `parts` are what `split_step_s` gives for them.
    """
    (reading_1, computing_1), (reading_2, computing_2) = parts
    one, two = measured_s
    whole = reading_1 * computing_2 - reading_2 * computing_1
    memory = (one * computing_2 - two * computing_1) / whole
    compute = (reading_1 * two - reading_2 * one) / whole
    # Noise must not make a part free, or negative.
    return Speed(1 / max(memory, 0.05), 1 / max(compute, 0.05))


def predict_roofline_s(
    model: ModelSize, streams: int, context: int, gb_s: float, tflops: float, pieces: int
) -> float:
    """The least time of one step on `pieces` accelerators that share the work evenly."""
    read = model.weights_bytes + streams * context * model.kv_bytes_per_token
    by_memory = read / (gb_s * 1e9 * pieces)
    by_compute = streams * model.operations_per_token / (tflops * 1e12 * pieces)
    return max(by_memory, by_compute)
