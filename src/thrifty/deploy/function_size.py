"""How large a function must be, how long it runs and what it costs, from a model's size and the
machine model that was fitted on our own measurements.

A function answers one request at a time, so that speeds are those of one stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from thrifty.deploy.base import Request
from thrifty.deploy.limits import GIB, Platform, Size
from thrifty.deploy.machine_model import ModelSize, predict_step_s, split_step_s
from thrifty.deploy.plan import UTILISATION, find_shape, make_size
from thrifty.deploy.service import DeployedVersion
from thrifty.deploy.sizing import Need, find_artifact, find_need
from thrifty.errors import Problem, SpecError
from thrifty.prices.table import FunctionPrice
from thrifty.types import Family

START_S = 30
"""For a start within the timeout; the first phase of a start is cut after 10 s and repeated."""
BASE_IMAGE_BYTES = 750_000_000
"""Of an image without a model."""
UNKNOWN_TIMEOUT_S = 300
UNKNOWN_CONCURRENCY = 10


@dataclass(frozen=True)
class Load:
    """What a function has to give, at the busiest time."""

    tpot_s: float
    """The longest time between two tokens."""
    prompt: int
    """Tokens of a prompt, on average."""
    answer: int
    """Tokens of an answer, at most."""
    rate: float
    """Answers a second."""


@dataclass(frozen=True)
class Predicted:
    """How one answer goes."""

    tpot_s: float
    answer_s: float


@dataclass(frozen=True)
class FunctionSize:
    """One function."""

    size: Size
    timeout_s: int
    concurrency: int
    predicted: Predicted | None
    """None where the store does not know the model."""

    @property
    def memory_mib(self) -> int:
        """Its memory."""
        return self.size.memory_bytes >> 20

    def estimate(self, load: Load, price: FunctionPrice) -> dict[str, Any]:
        """What was worked out, for people who read the template."""
        if self.predicted is None:
            return {"note": "the model's size is not known, so that nothing was predicted"}
        seconds = self.predicted.answer_s
        dollars = self.memory_mib / 1024 * seconds * price.per_gb_second
        dollars += price.per_million_requests / 1e6
        return {
            "vcpus": round(self.size.cpus, 2),
            "ms_per_token": round(self.predicted.tpot_s * 1000, 1),
            "seconds_per_answer": round(seconds, 1),
            "dollars_per_million_tokens": round(dollars / load.answer * 1e6, 2),
            "source": f"fitted on our own measurements; price: {price.source}",
        }


def find_function_size(
    request: Request,
    version: DeployedVersion,
    platform: Platform,
    load: Load,
    *,
    timeout_s: int | None,
    concurrency: int | None,
) -> FunctionSize:
    """The smallest function that holds the model and keeps to the time between tokens. Raises
    `SpecError` with numbers where there is none.
    """
    need = find_need(version, request.store, request.options.memory, None)
    _check_image(platform, need)
    model = _find_model(request, version)
    size = _choose(platform, need, model, load, fixed=request.options.memory is not None)
    if model is None:
        return FunctionSize(
            size, timeout_s or UNKNOWN_TIMEOUT_S, concurrency or UNKNOWN_CONCURRENCY, None
        )
    predicted = _predict(model, load, size)
    wanted = math.ceil(START_S + 2 * predicted.answer_s)
    most = platform.timeout_s or wanted
    if START_S + predicted.answer_s > (timeout_s or most):
        message = (
            f"an answer of {load.answer} tokens takes about {predicted.answer_s:.0f} s and a start up "
            f"to {START_S} s, more than the {timeout_s or most} s that a function may take; allow "
            "fewer tokens (--set answer=), use smaller weights (compress: int4), or another target"
        )
        raise SpecError([Problem("timeout", message)], f"the limits of {platform.name}")
    each = math.ceil(load.rate * predicted.answer_s / UTILISATION)
    return FunctionSize(
        size, timeout_s or min(most, wanted), concurrency or max(1, each), predicted
    )


def _check_image(platform: Platform, need: Need) -> None:
    image = need.disk_bytes + BASE_IMAGE_BYTES
    # Where the store does not know the model, nobody knows its files either.
    known = need.weights_bytes > 0
    if known and platform.disk_bytes is not None and image > platform.disk_bytes:
        message = (
            f"the image would have {image / GIB:.1f} GiB with the model in it, and {platform.name} "
            f"takes {platform.disk_bytes / GIB:g} GiB (read {platform.read}, {platform.source}); use "
            "a smaller model, or the target fargate"
        )
        raise SpecError([Problem("model", message)], f"the limits of {platform.name}")


def _find_model(request: Request, version: DeployedVersion) -> ModelSize | None:
    if not version.engine.traits.loads_model:
        return None
    artifact = find_artifact(version, request.store)
    if artifact is None or artifact.description.family is not Family.DECODER:
        return None
    return make_size(version, find_shape(version, request.store))


def _predict(model: ModelSize, load: Load, size: Size) -> Predicted:
    context = load.prompt + load.answer
    tpot_s = predict_step_s(model, 1, context, size.cpus)
    _, prefill_s = split_step_s(model, load.prompt, 0, size.cpus)
    return Predicted(tpot_s, prefill_s + load.answer * tpot_s)


def _choose(
    platform: Platform, need: Need, model: ModelSize | None, load: Load, *, fixed: bool
) -> Size:
    """The smallest size; `fixed` where the user named the memory, which is then taken as it is."""
    fitting = [one for one in platform.sizes if one.memory_bytes >= need.memory_bytes]
    largest = platform.sizes[-1]
    if not fitting:
        message = (
            f"{platform.name} gives a function at most {largest.memory_bytes / GIB:g} GiB (read "
            f"{platform.read}, {platform.source}), and this model needs "
            f"{need.memory_bytes / GIB:.1f} GiB; use smaller weights (compress: int4), or the target "
            "cloudrun, fargate or kubernetes"
        )
        raise SpecError([Problem("memory", message)], f"the limits of {platform.name}")
    if fixed or model is None:
        return fitting[0]
    for size in fitting:
        if _predict(model, load, size).tpot_s <= load.tpot_s:
            return size
    best_s = _predict(model, load, largest).tpot_s
    message = (
        f"with {largest.memory_bytes / GIB:g} GiB and {largest.cpus:.1f} cores, the most that "
        f"{platform.name} gives, a token takes about {best_s * 1000:.0f} ms, more than "
        f"{load.tpot_s * 1000:.0f} ms; allow more (--set tpot=), or use smaller weights"
    )
    raise SpecError([Problem("tpot", message)], f"the limits of {platform.name}")
