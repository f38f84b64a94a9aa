"""Distances, on arrays small enough to check by hand."""

from __future__ import annotations

import numpy as np

from tcompile.runtime.metrics import cosine, jaccard, not_finite, same_owner, top1_agreement


def test_cosine() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0, 1, 1, 0])


def test_cosine_of_half_precision_does_not_overflow() -> None:
    a = np.full((1, 4096), 300, dtype=np.float16)
    assert cosine(a, a) == 1


def test_top1() -> None:
    a = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.0, 1.0]])
    b = np.array([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.2, 0.3]])
    assert top1_agreement(a, b) == 0.75


def test_jaccard_ignores_order_and_padding() -> None:
    a = np.array([[0, 3, 5, -1], [0, 1, 2, 3]])
    b = np.array([[5, 0, 3, -1], [0, 1, 4, 5]])
    np.testing.assert_allclose(jaccard(a, b), [1, 2 / 6])


def test_owner_maps_compare_by_group_and_not_by_slot() -> None:
    a = np.array([[0, 1, 1, 2, -1], [0, 1, 1, 2, -1]])
    b = np.array([[2, 0, 0, 1, -1], [0, 1, 2, 2, -1]])
    np.testing.assert_allclose(same_owner(a, b), [1, 3 / 5])


def test_not_finite_names_output_and_kind() -> None:
    bad = np.array([1.0, np.nan, np.inf, np.inf])
    (text,) = not_finite({"good": np.ones(3), "ids": np.ones(3, dtype=np.int64), "bad": bad}, {})
    assert text == "output 'bad' has 1 NaN and 2 Inf among 4 values"


def test_what_is_not_finite_in_both_says_nothing() -> None:
    """A class that is masked is −Inf in every model; NaN against a number is another output."""
    a = np.array([[1.0, 2.0, -np.inf, np.nan]])
    np.testing.assert_allclose(cosine(a, 2 * a), 1)
    assert cosine(a, np.array([[1.0, 2.0, np.inf, np.nan]])) == 0
    assert cosine(a, np.array([[1.0, 2.0, -np.inf, 0.0]])) == 0
    assert cosine(np.full((1, 2), np.nan), np.zeros((1, 2))) == 0
    assert not_finite({"x": a}, {"x": a}) == []
    (text,) = not_finite({"x": a}, {"x": np.array([[1.0, 2.0, -np.inf, 3.0]])})
    assert text == "output 'x' has 1 NaN among 4 values"
