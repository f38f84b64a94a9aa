"""Curves between points, and the fit of what steps cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tcompile.errors import UsageError
from tcompile.profiling.curve import Curve, Figure, StepCost


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
    made = curve((10, 5.0), (20, 3.0), (30, 2.0))
    assert list(made.at([5, 40])) == [5.0, 2.0]
    assert curve((10, 5.0)).at([1, 99]).tolist() == [5.0, 5.0]


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
    made = StepCost(tuple(
        (n, k, Figure.modelled(float(np.dot(features(n, k), weights)))) for n, k in POINTS
    ))  # fmt: skip
    for n, k in ((180, 60), (120, 110), (50, 10)):
        assert made.at(n, k) == pytest.approx(np.dot(features(n, k), weights), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_the_best_that_has_no_negative_weight(seed: int) -> None:
    """Against a search over the vertices of a fine grid of weights around it, and all subsets."""
    rng = np.random.default_rng(seed)
    ms = rng.uniform(0.05, 0.5, len(POINTS))
    made = StepCost(tuple((n, k, Figure.modelled(float(t))) for (n, k), t in
                          zip(POINTS, ms, strict=True)))  # fmt: skip
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
