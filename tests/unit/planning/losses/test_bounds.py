"""Bounds against sums by hand, and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import t

from tcompile.planning.losses.drop import mean_at_most, share_at_least, share_at_most


def exact_tail(k: int, n: int, p: Fraction) -> float:
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (4, 5), (3, 40), (20, 40), (7, 300)])
@pytest.mark.parametrize("alpha", [0.02, 0.1])
def test_at_the_bound_the_tail_is_alpha(k: int, n: int, alpha: float) -> None:
    upper, lower = share_at_most(k, n, alpha), share_at_least(k, n, alpha)
    assert exact_tail(k, n, Fraction(upper)) == pytest.approx(alpha, rel=1e-6)
    assert lower <= k / n <= upper
    if k:  # P(X ≥ k) at the lower bound.
        assert 1 - exact_tail(k - 1, n, Fraction(lower)) == pytest.approx(alpha, rel=1e-6)
    else:
        assert lower == 0


def test_all_and_nothing() -> None:
    assert share_at_most(9, 9, 0.1) == 1.0
    assert share_at_least(0, 9, 0.1) == 0.0
    assert share_at_most(0, 64, 0.1) == pytest.approx(1 - 0.1 ** (1 / 64))


@pytest.mark.parametrize("p", [0.004, 0.03, 0.3])
@pytest.mark.parametrize("n", [20, 100])
def test_a_share_is_covered_at_every_sample_size(n: int, p: float) -> None:
    # Exactly, by weighing every outcome: no simulation needed.
    covered = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if share_at_most(k, n, 0.1) >= p
    )
    assert covered >= 0.9


def test_without_skew_it_is_the_t_bound() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    bound = 3.0 + t.ppf(0.9, 4) * x.std(ddof=1) / math.sqrt(5)
    assert mean_at_most(x, 0.1) == pytest.approx(bound)
    assert mean_at_most(np.full(9, 0.2), 0.1) == pytest.approx(0.2)
    assert mean_at_most([0.2], 0.1) == math.inf


@pytest.mark.parametrize("n", [32, 128])
def test_means_of_skewed_samples_are_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    draws = {
        "gamma": (rng.gamma(0.5, 1.0, (400, n)), 0.5),
        "lognormal": (rng.lognormal(0.0, 1.0, (400, n)), math.exp(0.5)),
    }
    for name, (samples, mean) in draws.items():
        covered = np.mean([mean_at_most(x, 0.05) >= mean for x in samples])
        # 0.9 is promised at half the error; two deviations of 400 draws are 0.03.
        assert covered >= 0.87, name
        plain = [x.mean() + t.ppf(0.95, n - 1) * x.std(ddof=1) / n**0.5 for x in samples]
        assert covered >= np.mean(np.array(plain) >= mean), name
