"""Statistics by simulation, with fixed seeds, against slow references and against `ville`.

The full thousand replays of the figures are in `benchmarks/releases.py`; here are as many as tell a
mistake from chance.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.statistics import (
    MIN_ARM,
    betting_evidence,
    betting_interval,
    bound_share,
    cohen_kappa,
    compare_arms,
    compare_blocks,
    empirical_bernstein,
    excess_evidence,
    mixture_radius,
    predicted_mean,
    ratio_evidence,
    share_interval,
    split_budget,
    tune_rho,
)

ALPHA = 0.05


def draw(shape: tuple[int, ...], mean: float, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < mean).astype(float)


def at_most(rate: float, replays: int) -> float:
    """What a share of `rate` stays below in so many replays, but for one case in a thousand."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / replays)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.97])
def test_bernstein_holds_the_mean_at_all_times(mean: float) -> None:
    values = draw((400, 1000), mean)
    low, high = empirical_bernstein(values, ALPHA)
    assert np.mean(((low > mean) | (high < mean)).any(axis=1)) <= at_most(ALPHA, 400)
    assert np.median(high[:, -1] - low[:, -1]) < 0.2
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()


def test_betting_holds_the_mean_and_is_narrower_early() -> None:
    missed = 0
    early, late = [], []
    for seed in range(40):
        values = draw((400,), 0.2, seed)
        low, high = betting_interval(values, ALPHA)
        wide_low, wide_high = empirical_bernstein(values, ALPHA)
        missed += bool(((low > 0.2) | (high < 0.2)).any())
        early.append((high[30] - low[30]) / (wide_high[30] - wide_low[30]))
        late.append((high[-1] - low[-1]) / (wide_high[-1] - wide_low[-1]))
    assert missed <= 6
    assert np.median(early) < 0.95
    assert np.median(late) < 1.2


def test_betting_evidence_is_a_test_martingale() -> None:
    bar = math.log(1 / ALPHA)
    for true, claimed in ((0.3, 0.3), (0.2, 0.3)):
        evidence = betting_evidence(draw((400, 800), true), claimed)
        assert np.mean((evidence >= bar).any(axis=1)) <= at_most(ALPHA, 400)
    assert np.mean((betting_evidence(draw((100, 800), 0.4), 0.3) >= bar).any(axis=1)) > 0.9


def test_evidence_does_not_look_ahead() -> None:
    values = draw((300,), 0.5)
    whole, part = betting_evidence(values, 0.4), betting_evidence(values[:200], 0.4)
    assert np.allclose(whole[:200], part)
    treated = draw((300,), 0.25, 2) > 0
    long, short = (
        compare_arms(values[:n], treated[:n], np.array(0.25)).estimate for n in (300, 200)
    )
    assert np.allclose(long[:200], short)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.01])
def test_excess_is_a_test_martingale_and_finds_an_excess(share: float) -> None:
    hits = draw((200, 400), share).cumsum(axis=1)
    count = np.arange(1, 401)
    bar = math.log(1 / ALPHA)
    assert np.mean((excess_evidence(hits, count, share) >= bar).any(axis=1)) <= at_most(ALPHA, 200)
    more = draw((60, 400), min(0.9, 2 * share + 0.02)).cumsum(axis=1)
    assert np.mean((excess_evidence(more, count, share) >= bar).any(axis=1)) > 0.6


def test_excess_is_the_uniform_mixture() -> None:
    """Against the closed form of the sign test: 2 B(l+1, w+1) P(Bin(n+1, 1/2) <= l) 2^n."""
    for losses, wins in ((0, 0), (9, 1), (30, 20), (5, 40)):
        count = losses + wins
        beta = math.exp(math.lgamma(losses + 1) + math.lgamma(wins + 1) - math.lgamma(count + 2))
        below = sum(math.comb(count + 1, k) for k in range(losses + 1)) / 2 ** (count + 1)
        expected = math.log(2 * beta * below * 2**count)
        assert float(excess_evidence(losses, count, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_the_bound_of_a_share_is_the_test_turned_round() -> None:
    assert bound_share(0, 0, ALPHA) == 0.0
    assert bound_share(0, 50, ALPHA) == 0.0
    for hits, count in ((9, 10), (30, 50), (5, 45)):
        low = bound_share(hits, count, ALPHA)
        assert 0 < low < hits / count
        assert float(excess_evidence(hits, count, low)) == pytest.approx(math.log(1 / ALPHA))
    hits = draw((100, 200), 0.3).cumsum(axis=1)[:, 49::50]
    bounds = np.array([[bound_share(int(h), n, ALPHA) for h, n in zip(row, (50, 100, 150, 200), strict=True)] for row in hits])  # fmt: skip
    assert np.mean((bounds > 0.3).any(axis=1)) <= at_most(ALPHA, 100)


def test_shares_as_planned_raise_no_alarm_and_others_do() -> None:
    bar = math.log(1 / ALPHA)
    alarms = 0
    for seed in range(200):
        hits = draw((2000,), 0.05, seed).cumsum()
        looks = range(100, 2001, 100)
        alarms += any(ratio_evidence([(int(hits[n - 1]), n, 0.05)]) >= bar for n in looks)
    assert alarms / 200 <= at_most(ALPHA, 200)
    assert ratio_evidence([(200, 1000, 0.25)]) > math.log(20)
    assert ratio_evidence([(5, 1000, 0.01), (250, 1000, 0.25)]) < 0
    with pytest.raises(ValueError, match="cannot be"):
        ratio_evidence([(5, 4, 0.5)])


def test_asymptotic_sequence_holds_the_mean_of_skewed_values() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(1.0, (400, 2000))
    count = np.arange(1, 2001)
    mean = values.cumsum(axis=1) / count
    variance = np.maximum((values**2).cumsum(axis=1) / count - mean**2, 1e-9)
    radius = mixture_radius(count, variance, ALPHA, tune_rho(500, ALPHA))
    missed = (np.abs(mean - 1) > radius)[:, 50:]
    assert np.mean(missed.any(axis=1)) <= at_most(ALPHA, 400)


@given(st.floats(1e-4, 0.3), st.integers(10, 100_000))
def test_one_side_is_narrower_than_two_and_tuning_is_best(alpha: float, count: int) -> None:
    rho = tune_rho(count, alpha)
    two = mixture_radius(count, 1.0, alpha, rho)
    assert mixture_radius(count, 1.0, alpha, tune_rho(count, alpha, sides=1), sides=1) < two
    for factor in (0.5, 2.0):
        assert two <= mixture_radius(count, 1.0, alpha, rho * factor) * 1.02


def test_arms_hold_the_difference_while_shares_change() -> None:
    """1%, then 25%: the first observations do not drown the later ones."""
    rng = np.random.default_rng(5)
    shares = np.where(np.arange(4000) < 2000, 0.01, 0.25)
    treated = rng.random((300, 4000)) < shares
    values = (rng.random((300, 4000)) < np.where(treated, 0.7, 0.8)).astype(float)
    found = compare_arms(values, treated, shares)
    low, high = found.bounds(ALPHA)
    assert np.mean((low > -0.1).any(axis=1)) <= at_most(ALPHA, 300)
    assert np.mean((high < -0.1).any(axis=1)) <= at_most(ALPHA, 300)
    assert np.mean(high[:, -1] < 0) > 0.9
    assert abs(float(np.mean(found.estimate[:, -1])) + 0.1) < 0.01
    early = found.treated < MIN_ARM
    assert np.isinf(low[early]).all()


def test_blocks_hold_the_difference_when_servers_pause() -> None:
    """A pause of one server slows all that it answers for a while; blocks know, single values
    would not.
    """
    rng = np.random.default_rng(13)
    alarms = naive = found = 0
    for _ in range(200):
        blocks = np.repeat(np.arange(80), 40)
        treated = rng.random(3200) < 0.25
        pause = rng.random((80, 2)) < 0.2
        values = rng.normal(0, 0.3, 3200) + 2.0 * pause[blocks, treated.astype(int)]
        low, high = compare_blocks(values, treated, blocks).bounds(ALPHA)
        alarms += bool(((low > 0) | (high < 0)).any())
        low, high = compare_arms(values, treated, np.array(0.25)).bounds(ALPHA)
        naive += bool(((low > 0) | (high < 0)).any())
        low, _ = compare_blocks(values + 0.8 * treated, treated, blocks).bounds(ALPHA)
        found += bool((low > 0).any())
    assert alarms / 200 <= at_most(2 * ALPHA, 200)
    assert naive / 200 > 0.3
    assert found > 180
    assert len(compare_blocks(np.zeros(3), np.zeros(3, dtype=bool), np.arange(3)).estimate) == 0


def test_arms_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="shares must be above 0"):
        compare_arms(np.zeros(3), np.zeros(3, dtype=bool), np.array(1.0))
    with pytest.raises(ValueError, match="differ"):
        compare_arms(np.zeros(3), np.zeros(4, dtype=bool), np.array(0.5))


def test_the_budget_is_shared() -> None:
    levels = split_budget(0.01, "acceptance", ["errors", "ttft", "cost"])
    assert levels["acceptance"] == 0.005
    assert sum(levels.values()) == pytest.approx(0.01)
    assert split_budget(0.01, "acceptance", []) == {"acceptance": 0.01}
    with pytest.raises(ValueError, match="once"):
        split_budget(0.01, "a", ["a"])


def test_predictions_are_corrected_by_labels() -> None:
    """A judge that flatters by 20 points: the mean of the labels is found all the same, and with a
    narrower interval than from the labels alone.
    """
    rng = np.random.default_rng(7)
    missed = narrower = 0
    for _ in range(100):
        truth = (rng.random(2200) < 0.6).astype(float)
        said = np.where(rng.random(2200) < 0.9, np.maximum(truth, rng.random(2200) < 0.5), truth)
        found = predicted_mean(said[200:], said[:200], truth[:200])
        missed += not found.low <= 0.6 <= found.high
        plain = truth[:200].std(ddof=1) / math.sqrt(200)
        narrower += found.stderr < plain
        assert found.correction < 0
    assert missed <= 5
    assert narrower > 90
    with pytest.raises(ValueError, match="too few"):
        predicted_mean(np.zeros(100), np.zeros(5), np.zeros(5))


def test_kappa_is_what_its_definition_says() -> None:
    first = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = cohen_kappa(first, second)
    assert found.agreement == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    # The classical example's standard error, by Fleiss, Cohen and Everitt.
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(0.1276, abs=0.002)
    assert math.isnan(cohen_kappa([1, 1], [1, 1]).kappa)
    assert cohen_kappa([], []).count == 0
    with pytest.raises(ValueError, match="pairs"):
        cohen_kappa([1], [])


def test_the_interval_of_kappa_holds_it() -> None:
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(300):
        truth = rng.random(150) < 0.4
        other = np.where(rng.random(150) < 0.3, rng.random(150) < 0.4, truth)
        found = cohen_kappa(list(truth), list(other))
        missed += not found.low <= 0.7 <= found.high
    assert missed / 300 <= at_most(0.06, 300)


def test_it_agrees_with_ville() -> None:
    """Another's code after the same papers."""
    ville = pytest.importorskip("ville", reason="pip install ville compares with it")
    values = draw((400,), 0.3, 9)
    theirs = ville.EmpiricalBernsteinCS(alpha=ALPHA).fit(values)
    low, high = empirical_bernstein(values, ALPHA)
    assert np.allclose(theirs.lower_, low, atol=1e-9)
    assert np.allclose(theirs.upper_, high, atol=1e-9)
    bets = ville.BettingCS(alpha=ALPHA, c=0.75, grid=1000).fit(values)
    low, high = betting_interval(values, ALPHA)
    assert np.abs(bets.lower_[100:] - low[100:]).max() < 0.01
    assert np.abs(bets.upper_[100:] - high[100:]).max() < 0.01
    count = np.arange(1, 401)
    mean = values.cumsum() / count
    variance = np.array([values[:n].var(ddof=1) if n > 1 else 0.0 for n in count])
    radius = mixture_radius(count, variance, ALPHA, tune_rho(500, ALPHA))
    limits = ville.AsymptoticCS(alpha=ALPHA, t_opt=500).fit(values)
    assert np.allclose(limits.lower_[100:], (mean - radius)[100:], atol=0.005)


# Shares from counts


def test_an_interval_of_a_share_holds_at_every_look() -> None:
    chance = np.random.default_rng(11)
    for share in (0.02, 0.3, 0.95):
        missed = 0
        for _ in range(200):
            hits = np.cumsum(chance.random(600) < share)
            looks = range(5, 600, 45)
            ends = [share_interval(int(hits[count - 1]), count, 0.1) for count in looks]
            missed += any(not low <= share <= high for low, high in ends)
        assert missed <= 20, share
    assert share_interval(0, 0, 0.05) == (0.0, 1.0)
    low, high = share_interval(0, 1000, 0.05)
    assert low == 0.0
    assert high < 0.01
    with pytest.raises(ValueError, match="cannot be"):
        share_interval(3, 2, 0.05)
