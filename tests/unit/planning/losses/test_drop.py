"""Drops: which one, its value, and whether its bound holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.losses.drop import images_needed, measure_drop, share_at_least, share_at_most

RNG = np.random.default_rng(0)


def logits(classes: np.ndarray, width: int = 5) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[classes] * 4


def test_with_labels_flips_both_ways_count() -> None:
    labels = np.array([0, 1, 2, 3, 4] * 20)
    dense, reduced = labels.copy(), labels.copy()
    dense[:10], reduced[5:30] = 4, 0  # image 4 is of class 4, those of class 0 stay right
    found = measure_drop({"logits": logits(dense)}, {"logits": logits(reduced)}, labels)
    before, after = (dense == labels).mean(), (reduced == labels).mean()
    assert found.what == "top-1 accuracy"
    assert found.exact
    assert found.images == 100
    assert found.mean == pytest.approx(before - after)
    lost = int(((dense == labels) & (reduced != labels)).sum())
    won = int(((dense != labels) & (reduced == labels)).sum())
    assert min(lost, won) > 0
    # Of the 10 % allowed, 8 for what turned wrong and 2 for what turned right.
    expected = share_at_most(lost, 100, 0.08) - share_at_least(won, 100, 0.02)
    assert found.upper == pytest.approx(expected)


def test_without_labels_it_is_disagreement() -> None:
    dense, reduced = np.zeros(50, int), np.zeros(50, int)
    reduced[:3] = 1
    found = measure_drop({"logits": logits(dense)}, {"logits": logits(reduced)}, confidence=0.95)
    assert found.what == "top-1 disagreement with dense"
    assert found.mean == pytest.approx(0.06)
    # Clopper-Pearson of 3 in 50 at 95 %, one-sided, as printed.
    assert found.upper == pytest.approx(0.1478, abs=1e-4)
    assert found.exact


def test_embeddings_by_cosine() -> None:
    dense = RNG.normal(size=(40, 16)).astype(np.float32)
    reduced = dense + 0.1 * RNG.normal(size=dense.shape).astype(np.float32)
    found = measure_drop({"embedding": dense}, {"embedding": reduced})
    dots = (dense * reduced).sum(1)
    each = 1 - dots / np.linalg.norm(dense, axis=1) / np.linalg.norm(reduced, axis=1)
    assert found.what == "1 - cosine or correlation"
    assert found.mean == pytest.approx(each.mean(), rel=1e-4)
    assert found.mean < found.upper < 2 * found.mean
    assert not found.exact
    one = measure_drop({"embedding": dense[:1]}, {"embedding": reduced[:1]})
    assert one.upper == 2.0  # Of one image nothing follows.


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.0), (0.05, 0.04), (0.3, 0.1), (0.0, 0.02)])
def test_the_bound_of_accuracy_holds(lost: float, won: float) -> None:
    """In at least 90 % of draws, less two deviations of their number."""
    rng = np.random.default_rng(1)
    labels = np.zeros(80, int)
    held = 0
    for _ in range(200):
        kind = rng.choice(3, size=80, p=[lost, won, 1 - lost - won])
        dense, reduced = np.where(kind == 1, 1, 0), np.where(kind == 0, 1, 0)
        found = measure_drop({"y": logits(dense)}, {"y": logits(reduced)}, labels)
        held += found.upper >= lost - won
    assert held / 200 >= 0.9 - 2 * math.sqrt(0.09 / 200)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("drop", [0.01, 0.05, 0.2])
def test_images_needed_is_the_fewest_that_can_show_it(drop: float, labels: bool) -> None:
    def upper(n: int) -> float:
        same = {"y": logits(np.zeros(n, int))}
        return measure_drop(same, same, np.zeros(n, int) if labels else None).upper

    n = images_needed(drop, labels=labels)
    assert upper(n) <= drop < upper(n - 1)


def test_what_does_not_fit_is_refused() -> None:
    two = {"y": logits(np.array([0, 1]))}
    for labels in ([0], [0, 7], [-1, 0]):
        with pytest.raises(UsageError, match="labels"):
            measure_drop(two, two, labels)
    with pytest.raises(UsageError, match="no images"):
        measure_drop({"y": two["y"][:0]}, {"y": two["y"][:0]})
    with pytest.raises(UsageError, match="compared"):
        measure_drop({"tokens": RNG.normal(size=(2, 5, 4))}, {"tokens": RNG.normal(size=(2, 3, 4))})
