"""Distances, on arrays small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.runtime.metrics import (
    correlation,
    cosine,
    jaccard,
    not_finite,
    relative_error,
    same_owner,
    token_cosine,
    top1_agreement,
)


def test_cosine() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0, 1, 1, 0])


def test_cosine_of_half_precision_does_not_overflow() -> None:
    a = np.full((1, 4096), 300, dtype=np.float16)
    assert cosine(a, a) == 1


def test_correlation_sees_a_hole_that_a_cosine_does_not() -> None:
    rng = np.random.default_rng(0)
    want = 10 + rng.standard_normal((1, 16, 16))
    have = want.copy()
    have[:, :8, :8] = 9
    assert cosine(want, have)[0] > 0.99
    expected = np.corrcoef(want.ravel(), have.ravel())[0, 1]
    assert correlation(want, have)[0] == pytest.approx(expected)
    assert expected < 0.9


def test_correlation_where_there_is_none() -> None:
    rising = np.arange(4.0)
    want = np.stack([np.full(4, 0.1), rising, rising, rising, np.full(4, 0.1)])
    have = np.stack([rising, np.full(4, 0.1), np.full(4, np.nan), -rising, np.full(4, np.nan)])
    np.testing.assert_allclose(correlation(want, have), [np.nan, 0, 0, -1, 0], atol=1e-12)


def test_relative_error() -> None:
    want = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [-np.inf, 2.0]])
    have = np.array([[3.0, 4.5], [0.0, 0.0], [1.0, 0.0], [np.nan, 1.0], [-np.inf, 1.0]])
    np.testing.assert_allclose(relative_error(want, have), [0.1, 0, np.inf, np.inf, 0.5])


def test_cosine_of_each_token() -> None:
    want = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    have = np.array([[[2.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_allclose(token_cosine(want, have), [[1, 0], [1, 1]])


def test_top1() -> None:
    a = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.0, 1.0]])
    b = np.array([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.2, 0.3]])
    assert top1_agreement(a, b) == 0.75
    assert top1_agreement(a, np.full_like(b, np.nan)) == 0  # no answer, not class 0


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
