"""Curves between points, and the fit of what steps cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.profiling.curve import Curve, Figure, StepCost, non_decreasing


def curve(*points: tuple[int, float]) -> Curve:
    return Curve.of((n, Figure(ms, ms * 0.9, ms * 1.1, 4)) for n, ms in points)


def test_lines_between_points_and_beyond_them() -> None:
    made = curve((40, 4.0), (10, 1.0), (20, 3.0))
    assert made.counts == (10, 20, 40)
    assert list(made.at([10, 15, 20, 30, 40])) == [1.0, 2.0, 3.0, 3.5, 4.0]
    assert made.at(5) == pytest.approx(0.0)  # 1.0 − 5 · 0.2
    assert made.at(1) == 0.0, "never below 0"
    assert made.at(60) == pytest.approx(5.0)


def test_outside_of_a_falling_curve_nothing_grows() -> None:
    made = Curve.of((n, Figure.modelled(ms)) for n, ms in ((10, 5.0), (20, 3.0), (30, 2.0)))
    assert list(made.at([5, 40])) == [5.0, 2.0], "what is modelled has no noise"
    assert curve((10, 5.0)).at([1, 99]).tolist() == [5.0, 5.0]


def test_what_was_measured_is_fitted_without_a_fall_and_stays_in_the_file() -> None:
    """72 tokens 123 ms, 88 tokens 112 ms, on a busy machine."""
    made = curve((56, 100.0), (72, 123.0), (88, 112.0), (104, 140.0))
    low, first, second, high = made.at([56, 72, 88, 104])
    assert (low, high) == (100.0, 140.0)
    assert first == second
    assert 112 < first < 123
    assert np.all(np.diff(made.at(range(40, 140))) >= 0)
    assert made.raw.tolist() == [100.0, 123.0, 112.0, 140.0]
    document = made.to_json()
    assert [row[1] for row in document] == [100.0, 123.0, 112.0, 140.0]
    assert [len(row) for row in document] == [5] * 4, "as files were before"
    assert Curve.from_json(document).fit == pytest.approx(made.fit)


def test_precise_points_and_those_of_many_runs_weigh_more() -> None:
    def fitted(first: Figure, second: Figure) -> float:
        ends = (10, Figure(1.0, 0.9, 1.1, 9)), (40, Figure(9.0, 8.0, 10.0, 9))
        made = Curve((ends[0], (20, first), (30, second), ends[1]))
        assert made.fit[1] == made.fit[2]
        return float(made.fit[1])

    equal = fitted(Figure(5.0, 4.5, 5.5, 9), Figure(4.0, 3.6, 4.4, 9))
    assert fitted(Figure(5.0, 4.9, 5.1, 9), Figure(4.0, 3.0, 5.0, 9)) > equal + 0.1
    assert fitted(Figure(5.0, 4.5, 5.5, 90), Figure(4.0, 3.6, 4.4, 9)) > equal + 0.1
    assert fitted(Figure(5.0, 4.5, 5.5, 9), Figure(4.0, 3.6, 4.4, 90)) < equal - 0.1
    # Three equal runs by luck are no proof: the others' spread counts for half.
    assert fitted(Figure(5.0, 5.0, 5.0, 3), Figure(4.0, 3.6, 4.4, 90)) < 4.6


@pytest.mark.parametrize("seed", range(20))
def test_the_isotonic_fit_is_the_nearest_of_all(seed: int) -> None:
    """Against the min-max formula, which knows nothing of pools."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    values, weights = rng.normal(size=size) + np.arange(size) / 4, rng.uniform(0.1, 9, size)
    found = non_decreasing(values, weights)
    expected = [
        max(
            min(np.average(values[a : b + 1], weights=weights[a : b + 1]) for b in range(i, size))
            for a in range(i + 1)
        )
        for i in range(size)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_zeros_and_single_points_are_fitted_too() -> None:
    assert curve((10, 0.0), (20, 0.0), (30, 0.0)).fit.tolist() == [0, 0, 0]
    assert np.isfinite(curve((10, 1.0), (20, 0.0), (30, 2.0)).fit).all()
    assert curve((10, 5.0)).fit.tolist() == [5.0]


def test_a_fit_from_elsewhere_is_kept_and_checked() -> None:
    points = curve((10, 3.0), (20, 2.0)).points
    made = Curve(points, (2.4, 2.6))
    assert made.at([10, 20]).tolist() == [2.4, 2.6]
    again = Curve.from_json(made.to_json())
    assert (again.counts, again.given) == (made.counts, made.given)
    for wrong in (
        [[10, 1, 1, 1, 1, 1], [20, 1, 1, 1, 1]],
        [[10, 1, 1, 1, 1, float("nan")]],
        [[10, 1, 1, 1, 1, -1.0]],
        [[10, 1, 1, 1, 1, 1, 1]],
    ):
        with pytest.raises(ValueError):
            Curve.from_json(wrong)
    assert made.with_(Curve(points)).given is None, "fitted anew with new points"


def test_a_figure_is_median_and_quartiles() -> None:
    times = [5.0, 1.0, 2.0, 3.0, 4.0]
    assert Figure.of(times) == Figure(3.0, 2.0, 4.0, 5)
    assert Figure.of(times).minus(1.0, 2) == Figure(1.0, 0.5, 1.5, 5)
    assert Figure.of(times).minus(9.0) == Figure(0.0, 0.0, 0.0, 5)


def test_two_figures_together_go_by_their_runs() -> None:
    both = Figure(1.0, 0.5, 1.5, 1).with_(Figure(2.0, 1.5, 2.5, 3))
    assert both == Figure(1.75, 1.25, 2.25, 4)
    merged = curve((10, 1.0), (20, 2.0)).with_(curve((20, 4.0), (30, 3.0)))
    assert [(n, f.ms, f.runs) for n, f in merged.points] == [(10, 1, 4), (20, 3.0, 8), (30, 3, 4)]


@pytest.mark.parametrize("counts", [(), (10, 10), (20, 10), (0, 10)])
def test_counts_must_ascend(counts: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        Curve(tuple((n, Figure.modelled(1.0)) for n in counts))


def features(n: float, k: float) -> list[float]:
    return [1.0, n, k, n * n, (n - k) * k]


POINTS = [(197, 177), (197, 138), (197, 99), (138, 124), (138, 83), (99, 89), (99, 50), (60, 42)]


@pytest.mark.parametrize("seed", range(8))
def test_a_cost_of_the_form_is_found_again(seed: int) -> None:
    """Random weights, some of them 0: the fit equals the function at points it never saw."""
    rng = np.random.default_rng(seed)
    scale = np.array([0.1, 1e-3, 1e-3, 1e-5, 1e-5])
    weights = rng.uniform(0, 1, 5) * scale * (rng.uniform(size=5) < 0.7)
    weights[0] += 0.01
    made = StepCost(
        tuple((n, k, Figure.modelled(float(np.dot(features(n, k), weights)))) for n, k in POINTS)
    )
    for n, k in ((180, 60), (120, 110), (50, 10)):
        assert made.at(n, k) == pytest.approx(np.dot(features(n, k), weights), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_the_best_that_has_no_negative_weight(seed: int) -> None:
    """Against a search over the vertices of a fine grid of weights around it, and all subsets."""
    rng = np.random.default_rng(seed)
    ms = rng.uniform(0.05, 0.5, len(POINTS))
    made = StepCost(
        tuple((n, k, Figure.modelled(float(t))) for (n, k), t in zip(POINTS, ms, strict=True))
    )
    rows = np.array([features(n, k) for n, k in POINTS]) / ms[:, None]

    def error(weights: np.ndarray) -> float:
        return float(((rows @ weights - 1) ** 2).sum())

    found = made._fit
    assert (found >= 0).all()
    # A projected gradient from many starts, which knows nothing of subsets.
    scale = np.linalg.norm(rows, axis=0)
    unit = rows / scale
    step = 1 / np.linalg.norm(unit, 2) ** 2
    best = np.inf
    for _ in range(3):
        w = rng.uniform(0, 1, 5)
        for _ in range(20000):
            w = np.maximum(w - step * unit.T @ (unit @ w - 1), 0)
        best = min(best, error(w / scale))
    assert error(found) <= best + 1e-4


def test_steps_broadcast_and_never_fall_below_zero() -> None:
    made = StepCost(tuple((n, k, Figure.modelled(0.1)) for n, k in POINTS))
    table = made.at(np.array([[50], [197]]), np.array([[10, 20, 30]]))
    assert table.shape == (2, 3)
    assert (table >= 0).all()
    assert table == pytest.approx(0.1)


def test_one_point_is_enough_and_zero_stays_next_to_zero() -> None:
    free = StepCost(((197, 2, Figure.modelled(0.0)),))
    grid = np.array(list(itertools.product((50, 197), (10, 40))))
    assert free.at(grid[:, 0], grid[:, 1]).max() <= 1e-5
    assert StepCost(((197, 99, Figure.modelled(0.2)),)).at(197, 99) == pytest.approx(0.2)
