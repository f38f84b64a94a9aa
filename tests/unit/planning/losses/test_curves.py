"""Curves through a few measured counts: monotone, exact where measured, steep where nothing was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tcompile.planning.losses.base import LossCurve, fitted


@pytest.mark.parametrize("seed", range(30))
def test_isotonic_is_the_nearest_sequence_that_never_rises(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, size=6).astype(float)

    def pooled(cuts: tuple[int, ...]) -> np.ndarray:
        parts = np.split(values, cuts)
        return np.concatenate([np.full(len(p), p.mean()) for p in parts])

    # The optimum is constant on runs: every way to cut the sequence into runs, by hand.
    ways = [c for k in range(6) for c in itertools.combinations(range(1, 6), k)]
    monotone = [w for w in map(pooled, ways) if np.all(np.diff(w) <= 1e-12)]
    best = min(monotone, key=lambda w: float(((w - values) ** 2).sum()))
    found = fitted(dict(enumerate(values, 2)), 9, 1).values
    np.testing.assert_allclose(found, [*best, 0.0], atol=1e-12)


def test_a_curve_goes_through_what_was_measured_and_is_linear_between() -> None:
    curve = fitted({50: 0.8, 100: 0.3, 150: 0.1}, 200, 1)
    assert curve.counts == (50, 100, 150, 200)
    np.testing.assert_allclose(curve([50, 75, 100, 150, 175, 200]), [0.8, 0.55, 0.3, 0.1, 0.05, 0])


def test_below_the_fewest_its_odds_grow_as_the_prior_does() -> None:
    curve = fitted({101: 0.2}, 201, 1)  # Half of 200 patches: g = 0.5, odds 1 : 4.
    odds = 0.25 * np.array([1, 2.25 / 0.5, 8.1 / 0.5])
    np.testing.assert_allclose(curve([101, 51, 21]), odds / (1 + odds))
    assert np.all(np.diff(curve(np.arange(2, 202))) < 0)
    np.testing.assert_allclose(fitted({101: 1.3}, 201, 1)([101, 2]), [1.3, 1.3])


def test_noise_is_pooled_and_never_negative() -> None:
    curve = fitted({50: 0.2, 100: 0.4, 150: -0.1}, 200, 0)
    np.testing.assert_allclose(curve.values, [0.3, 0.3, 0.0, 0.0])


def test_shapes_are_kept() -> None:
    curve = LossCurve((10, 20), (1.0, 0.0), 0)
    assert curve(np.array([[10], [20]])).shape == (2, 1)
