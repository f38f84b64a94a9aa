"""POMT's utility against an independent computation, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.solve.on_images import most_useful


def independent(counts: list[int], latency: list[int], accuracy: list[int]) -> int:
    slowest, highest = Fraction(max(latency)), Fraction(max(accuracy))
    curve = [(slowest - t) / slowest + a / highest for t, a in zip(latency, accuracy, strict=True)]
    top = max(curve)
    return max(n for n, u in zip(counts, curve, strict=True) if u == top)


def choice(counts: list[int], latency: list[float], accuracy: list[float]) -> int:
    known = dict(zip(counts, accuracy, strict=True))
    return most_useful(counts, np.asarray(latency, np.float64), known)


@pytest.mark.parametrize("seed", range(30))
def test_the_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = list(range(2, 197))
    latency = [int(1000 * -(-n // 32)) + int(rng.integers(0, 200)) for n in counts]
    accuracy = [int(8000 * (1 - 2.0 ** (-n / 30))) + int(rng.integers(0, 50)) for n in counts]
    assert choice(counts, latency, accuracy) == independent(counts, latency, accuracy)


def test_it_stands_on_the_step() -> None:
    """Accuracy that hardly falls, latency in steps of 64: the right edge of a step."""
    counts = list(range(2, 198))
    latency = [float(-(-n // 64)) for n in counts]
    accuracy = [100 + n / 100 for n in counts]
    assert choice(counts, latency, accuracy) == 64


def test_the_larger_of_equals() -> None:
    assert choice([10, 20, 30], [1.0, 1.0, 2.0], [60.0, 60.0, 60.0]) == 20


@pytest.mark.parametrize(
    ("latency", "accuracy", "words"),
    [(0.0, 1.0, "latencies"), (1.0, 0.0, "accuracies"), (1.0, np.nan, "accuracies")],
)
def test_what_cannot_be_weighed(latency: float, accuracy: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choice([10], [latency], [accuracy])
