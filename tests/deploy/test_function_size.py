"""How large functions are, by hand from the same figures."""

from __future__ import annotations

import pytest

from thrifty.deploy.function_size import FunctionSize, Load, Predicted, _choose, _predict
from thrifty.deploy.limits import Size, load_platforms
from thrifty.deploy.machine_model import ModelSize, predict_step_s
from thrifty.deploy.sizing import Need
from thrifty.errors import SpecError
from thrifty.prices.table import FunctionPrice

SMOL = ModelSize(135_000_000, 30, 143_000_000, 11_520, "int8")
LAMBDA = load_platforms()["lambda"]
LOAD = Load(0.05, 512, 512, 1.0)


def test_the_least_memory_that_keeps_to_the_objective_is_taken() -> None:
    size = _choose(LAMBDA, Need(900 << 20, 2), SMOL, LOAD, fixed=False)
    assert size.memory_bytes >= 900 << 20
    assert predict_step_s(SMOL, 1, 1024, size.cpus) <= 0.05
    faster = _choose(LAMBDA, Need(900 << 20, 2), SMOL, Load(0.02, 512, 512, 1.0), fixed=False)
    less = LAMBDA.sizes[LAMBDA.sizes.index(faster) - 1]
    assert predict_step_s(SMOL, 1, 1024, faster.cpus) <= 0.02
    assert predict_step_s(SMOL, 1, 1024, less.cpus) > 0.02
    with pytest.raises(SpecError, match=r"10 GiB and 5\.8 cores.*a token takes about"):
        _choose(LAMBDA, Need(900 << 20, 2), SMOL, Load(0.001, 512, 512, 1.0), fixed=False)


def test_processors_follow_memory_as_lambda_gives_them() -> None:
    assert LAMBDA.sizes[0] == Size(128 / 1769, 128 << 20)
    assert LAMBDA.sizes[-1].memory_bytes == 10240 << 20
    assert LAMBDA.sizes[-1].cpus == pytest.approx(5.79, abs=0.01)


def test_an_answer_takes_its_prompt_and_its_tokens() -> None:
    size = Size(2.0, 3538 << 20)
    predicted = _predict(SMOL, LOAD, size)
    prompt_s = 512 * 2 * 135e6 / (53e9 * 2)
    assert predicted.answer_s == pytest.approx(prompt_s + 512 * predicted.tpot_s)


def test_the_estimate_is_what_lambda_bills() -> None:
    found = FunctionSize(Size(1.0, 2048 << 20), 60, 1, Predicted(0.02, 10.0))
    price = FunctionPrice("us-east-1", 0.0000166667, 0.2, "a page")
    estimate = found.estimate(LOAD, price)
    each = 2 * 10 * 0.0000166667 + 0.2e-6
    assert estimate["dollars_per_million_tokens"] == round(each / 512 * 1e6, 2)
