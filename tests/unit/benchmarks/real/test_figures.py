"""Figures of images, and of rankings."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.real.figures import (
    mean_token_cosine,
    rank_correlation,
    retrieved,
    same_classes,
    same_neighbour,
    summary,
)


def test_summary_is_mean_percentile_and_worst() -> None:
    found = summary([*np.linspace(0, 1, 101), float("nan")])
    assert found == pytest.approx({"mean": 0.5, "p5": 0.05, "worst": 0.0})
    assert summary([float("nan")]) == {"mean": 0.0, "p5": 0.0, "worst": 0.0}


def test_a_hole_counts_as_much_as_it_is_large() -> None:
    dense = np.random.default_rng(0).standard_normal((2, 10, 4))
    dense[:, 0] *= 100  # One token of a large norm would hide it in a cosine of everything.
    holed = dense.copy()
    holed[1, 1:6] *= -1
    assert mean_token_cosine(dense, holed) == pytest.approx([1.0, 0.0])


def test_classes_that_move() -> None:
    dense = np.log(np.array([[0.5, 0.5, 1e-12], [0.5, 0.25, 0.25]]))
    moved = np.log(np.array([[1e-12, 0.5, 0.5], [0.5, 0.25, 0.25]]))
    assert same_classes(dense, moved) == pytest.approx([0.5, 1.0])


def test_neighbours() -> None:
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float64)
    swapped = features[[0, 2, 1, 3]]
    assert retrieved(features, ["a", "a", "b", "b"]) == 1.0
    assert retrieved(features, ["a", "b", "a", "b"]) == 0.0
    assert same_neighbour(features, 3 * features).tolist() == [1, 1, 1, 1]
    assert same_neighbour(features, swapped).tolist() == [0, 0, 0, 0]


def test_rank_correlation_is_of_what_both_have() -> None:
    a = {"x": 0.1, "y": 0.2, "z": 0.3, "only a": 9.0}
    assert rank_correlation(a, {"x": 1, "y": 2, "z": 8, "only b": 0}) == pytest.approx(1)
    assert rank_correlation(a, {"x": 3, "y": 2, "z": 1}) == pytest.approx(-1)
    assert rank_correlation(a, {"x": 3, "y": 2}) is None
    assert rank_correlation(a, dict.fromkeys(a, 1.0)) is None
