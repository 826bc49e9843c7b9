"""Which stages a pipeline has, and how pruning and distillation are divided into steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from thrifty.compress.stages import (
    describe_stage,
    divide_distillation,
    plan_stages,
    require_more,
    share_after,
)
from thrifty.errors import CompressionError
from thrifty.spec.compress import CompressSpec


def make(**keys: Any) -> CompressSpec:
    return CompressSpec.model_validate(keys)


def test_without_steps_there_is_one_stage_of_each_kind() -> None:
    compress = make(prune=0.8, distill="2M", quantize="int4")
    assert [(one.title, one.out) for one in plan_stages(compress, "m")] == [
        ("prune", "m-pruned"),
        ("distill", "m-pruned-distilled"),
        ("quantize", "m-pruned-distilled-int4"),
    ]
    assert share_after(compress, 1) == 0.8


def test_steps_prune_and_distill_in_turn() -> None:
    compress = make(prune={"parameters": 0.5, "steps": 2}, distill="30m", out="small")
    stages = plan_stages(compress, "m")
    assert [(one.title, one.out) for one in stages] == [
        ("prune 1 of 2", "m-1of2-pruned"),
        ("distill 1 of 2", "m-1of2-pruned-distilled"),
        ("prune 2 of 2", "m-pruned"),
        ("distill 2 of 2", "m-pruned-distilled"),
        ("quantize", "small"),
    ]
    assert [describe_stage(one, compress, "t") for one in stages[:4]] == [
        "to 71% of the parameters",
        "on 15 min 0 s, with the teacher t",
        "to 50% of the parameters",
        "on 15 min 0 s, with the teacher t",
    ]


def test_all_steps_have_the_same_part_of_the_training() -> None:
    tokens = make(prune={"parameters": 0.3, "steps": 3}, distill="3M", quantize="none")
    minutes = make(prune={"parameters": 0.3, "steps": 3}, distill="30m", quantize="none")
    for compress, part in ((tokens, (1_000_000, None)), (minutes, (None, 600.0))):
        parts = [
            divide_distillation(compress, one)
            for one in plan_stages(compress, "m")
            if one.kind == "distill"
        ]
        assert parts == [part] * 3


@pytest.mark.parametrize(
    ("parameters", "steps"), [(0.9, 1), (2 / 3, 1), (0.66, 2), (4 / 9, 2), (0.4, 3), (1e-4, 10)]
)
def test_auto_takes_at_most_a_third_at_a_time(parameters: float, steps: int) -> None:
    compress = make(prune={"parameters": parameters, "steps": "auto"}, distill="1M")
    assert compress.prune.count_steps() == steps
    shares = [share_after(compress, step) or 0.0 for step in range(1, steps + 1)]
    assert shares[-1] == pytest.approx(parameters)
    ratios = [after / before for before, after in zip([1.0, *shares], shares, strict=False)]
    assert all(math.isclose(one, ratios[0]) for one in ratios)
    assert parameters < 0.01 or min(ratios) >= 2 / 3 - 1e-9


def test_a_step_that_leaves_nothing_for_the_next_is_an_error() -> None:
    compress = make(prune={"parameters": 0.81, "steps": 2}, distill="1M")
    first, _, second, *_ = plan_stages(compress, "m")
    require_more(compress, first, 0.85)
    require_more(compress, second, 0.5)
    with pytest.raises(CompressionError, match=r"leaves 80.0% .* next one is to leave 81.0%; set"):
        require_more(compress, first, 0.8)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"parameters": 0.5, "steps": 0}, "must be a number from 1 to 10, or auto, not 0"),
        ({"parameters": 0.5, "steps": 1.5}, "must be a number from 1 to 10"),
        ({"parameters": 0.5, "steps": True}, "must be a number from 1 to 10"),
        ({"parameters": 0.5, "steps": "some"}, "must be a number from 1 to 10"),
        ({"vocabulary": 0.5, "steps": 2}, "says in how many steps, and not how much"),
        ({"steps": 2}, "says how to prune, and not how much"),
    ],
)
def test_steps_that_mean_nothing_are_refused(prune: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(prune=prune, distill="1M")
