"""Augmentation is kept where it gains, dropped where it does not, and chance seldom passes for gain."""

from __future__ import annotations

import random

import pytest

from thrifty.data.noise import Noise
from thrifty.errors import DataError
from thrifty.train.gain import keep_what_gains

HELPFUL, USELESS, HARMFUL = Noise(words=0.02), Noise(words=0.03), Noise(words=0.9)


def measure_with(seed: int, gains: dict[Noise | None, float], items: int = 200):
    rng = random.Random(seed)
    base = [rng.gauss(0, 1) for _ in range(items)]
    return lambda noise, repeat: [one + gains.get(noise, 0) + rng.gauss(0, 0.3) for one in base]


def test_what_gains_is_kept_and_the_rest_dropped() -> None:
    candidates = {"helpful": HELPFUL, "useless": USELESS, "harmful": HARMFUL}
    choice = keep_what_gains(candidates, measure_with(1, {HELPFUL: 0.2, HARMFUL: -0.5}))
    assert (choice.name, choice.augmentation) == ("helpful", HELPFUL)
    assert [trial["kept"] for trial in choice.as_dict()["trials"]] == [True, False, False]
    by_name = {trial.name: trial for trial in choice.trials}
    assert by_name["helpful"].low < 0.2 < by_name["helpful"].high
    assert by_name["useless"].low < 0 < by_name["useless"].high
    assert by_name["harmful"].high < 0


def test_chance_is_kept_as_seldom_as_stated() -> None:
    candidates = {f"useless {n}": Noise(words=n / 100) for n in range(5)}
    kept = sum(
        keep_what_gains(candidates, measure_with(seed, {})).name is not None for seed in range(300)
    )
    # 2.5% are expected, one side of 5% for all five together; 3 standard errors more is 5.2%.
    assert kept <= 16


def test_too_few_items_and_others_are_refused() -> None:
    with pytest.raises(DataError, match="20 held-out items cannot tell"):
        keep_what_gains({"a": HELPFUL}, lambda *_: [0.0] * 20)
    with pytest.raises(DataError, match="a was measured on 31 items, not on the 30"):
        keep_what_gains({"a": HELPFUL}, lambda noise, _: [0.0] * (31 if noise else 30))


def test_what_differs_between_repetitions_widens_the_interval() -> None:
    def measure(noise: Noise | None, repeat: int) -> list[float]:
        # The first repetition gains, the second loses nearly as much: chance of the training.
        shift = 0.0 if noise is None else (0.5, -0.4)[repeat]
        return [one + shift for one in measure_with(repeat, {})(None, repeat)]

    assert keep_what_gains({"a": HELPFUL}, measure).name == "a"
    choice = keep_what_gains({"a": HELPFUL}, measure, repeats=2)
    assert choice.name is None
    assert choice.trials[0].low < -0.3 < 0.3 < choice.trials[0].high
