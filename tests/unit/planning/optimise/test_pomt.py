"""POMT's utility against an independent computation, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.optimise import pomt_choice


def independent(
    counts: list[int], latency: list[int], accuracy: list[int], alpha: Fraction
) -> tuple[list[Fraction], int]:
    slowest, highest = Fraction(max(latency)), Fraction(max(accuracy))
    curve = [
        alpha * (slowest - t) / slowest + (1 - alpha) * a / highest
        for t, a in zip(latency, accuracy, strict=True)
    ]
    top = max(curve)
    return curve, max(n for n, u in zip(counts, curve, strict=True) if u == top)


@pytest.mark.parametrize("seed", range(30))
def test_the_utility_and_the_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = list(range(196, 1, -1))  # As POMT runs over them.
    latency = [int(1000 * -(-n // 32)) + int(rng.integers(0, 200)) for n in counts]
    accuracy = [int(8000 * (1 - 2.0 ** (-n / 30))) + int(rng.integers(0, 50)) for n in counts]
    alpha = Fraction(int(rng.integers(1, 4)), 4)
    curve, chosen = independent(counts, latency, accuracy, alpha)
    found = pomt_choice(counts, latency, accuracy, float(alpha))
    assert found.utility == pytest.approx([float(u) for u in curve], abs=1e-12)
    assert found.tokens == chosen


def test_it_stands_on_the_step() -> None:
    """Accuracy that hardly falls, latency in steps of 64: the right edge of a step."""
    counts = list(range(2, 198))
    latency = [-(-n // 64) for n in counts]
    accuracy = [100 + n / 100 for n in counts]
    assert pomt_choice(counts, latency, accuracy).tokens == 64


def test_the_ends_of_alpha_and_ties() -> None:
    counts, latency, accuracy = [10, 20, 30], [1.0, 1.0, 2.0], [50.0, 60.0, 60.0]
    assert pomt_choice(counts, latency, accuracy, 1.0).tokens == 20  # The larger of equals.
    assert pomt_choice(counts, latency, accuracy, 0.0).tokens == 30
    assert pomt_choice(counts[::-1], latency[::-1], accuracy[::-1], 0.0).tokens == 30


@pytest.mark.parametrize(
    "bad",
    [
        ([10], [1.0], [1.0], 1.5),
        ([10], [1.0, 2.0], [1.0], 0.5),
        ([], [], [], 0.5),
        ([10], [0.0], [1.0], 0.5),
        ([10], [1.0], [float("nan")], 0.5),
    ],
)
def test_what_cannot_be_weighed(bad: tuple[list[int], list[float], list[float], float]) -> None:
    with pytest.raises(UsageError):
        pomt_choice(*bad)
