"""Intervals against formulas written out, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tcompile.evaluation.intervals import WeightedSums, mean, paired_share, resampled_sums, share


def answers(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of both models, so many of each kind."""
    dense = [True] * (both + lost) + [False] * (won + neither)
    reduced = [True] * both + [False] * lost + [True] * won + [False] * neither
    return np.asarray(dense), np.asarray(reduced)


def test_a_paired_share_is_agresti_and_min_with_mcnemar() -> None:
    """Agresti and Min (2005), approval ratings: 794, 150, 86, 570 of 1600."""
    found = paired_share("top1", *answers(794, 150, 86, 570))
    assert (found.dense, found.reduced) == (944 / 1600, 880 / 1600)
    assert found.difference == pytest.approx(-0.04)
    b, c, n = 150.5, 86.5, 1602.0
    spread = 1.959964 * np.sqrt((b + c) - (c - b) ** 2 / n) / n
    assert found.low == pytest.approx((c - b) / n - spread, abs=1e-6)
    assert found.high == pytest.approx((c - b) / n + spread, abs=1e-6)
    # Exact: twice the tail of a fair coin, summed here by hand.
    tail = sum(stats.binom.pmf(k, 236, 0.5) for k in range(87))
    assert found.p_value == pytest.approx(2 * tail)


def test_where_nothing_changed_the_interval_still_has_a_width() -> None:
    found = paired_share("top1", *answers(20, 0, 0, 0))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.05 < 0.05 < found.high
    same = share("agreement", np.ones(20, bool))
    assert same.reduced == 1.0
    assert same.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)  # Wilson's, written out


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        base = rng.normal(size=50)
        found = mean("map", base + rng.normal(0.3, 0.5, 50), base, seed=trial)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low < 0.3 < found.high
        # Paired: as narrow as the differences allow, 2 · 1.96 · 0.5 / √50, not as the values do.
        assert found.high - found.low < 0.4
    assert hits >= 52


def test_means_leave_out_what_is_not_known() -> None:
    found = mean("correlation", np.array([0.5, np.nan, 1.0]))
    assert found is not None
    assert (found.reduced, found.images, found.dense) == (0.75, 2, None)
    assert mean("correlation", np.array([np.nan])) is None
    single = mean("correlation", np.array([0.5]))
    assert single is not None
    assert (single.low, single.interval) == (None, "")


def test_resamples_have_as_many_rows_as_there_are() -> None:
    rows = np.stack([np.ones(40), np.arange(40.0)], axis=1)
    sums = resampled_sums(rows, seed=1)
    assert (sums[:, 0] == 40).all()
    assert sums[:, 1].mean() == pytest.approx(rows[:, 1].sum(), rel=0.02)
    np.testing.assert_array_equal(sums, resampled_sums(rows, seed=1))
    kept = WeightedSums(2, seed=1)
    for row in rows:
        kept.add(row)
    np.testing.assert_array_equal(kept.total, rows.sum(axis=0))
    assert kept.sums[:, 0].std() == pytest.approx(40**0.5, rel=0.1)  # Poisson, not multinomial
    assert kept.sums[:, 1].mean() == pytest.approx(rows[:, 1].sum(), rel=0.03)
