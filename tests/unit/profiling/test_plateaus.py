"""Plateaus of curves: right edges, what is free, and which counts are worth planning with."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.profiling.plateaus import Plateau, free_edge, grid, plateaus


def test_right_edges() -> None:
    counts, ms = [2, 4, 6, 8, 10], [1.0, 1.005, 1.2, 1.0, 2.0]

    def edges(first: int = 0, eps: float = 0.01) -> list[int]:
        return [p.last for p in plateaus(counts[first:], ms[first:], eps)]

    assert edges() == [8, 10]  # Beyond a count that happens to be slow.
    assert edges(2) == [8, 10]
    assert edges(4) == [10]
    assert edges(eps=1.0) == [10]
    assert edges(1, eps=0.0) == [8, 10]


def test_what_is_free_on_a_staircase_and_on_a_slope() -> None:
    counts = list(range(8, 257, 4))
    stairs = [float(-(-n // 64)) for n in counts]
    for n in counts:
        assert free_edge(counts, stairs, n) == min(-(-n // 64) * 64, 256)
    # A slope has none; nor has one that begins with a launch.
    for slope in ([float(n) for n in counts], [64.0 + n for n in counts]):
        assert all(free_edge(counts, slope, n, eps) == n for n in counts for eps in (0.01, 0.02))
    # Launches alone, and next to nothing per token: all that lies within ε.
    flat = [1000.0 + 0.1 * n for n in counts]
    assert free_edge(counts, flat, 100, eps=0.01) == 200
    assert free_edge(counts, flat, 100, eps=0.0) == 100
    assert free_edge(counts, flat, 256) == 256
    # What lies beyond a count that is not free is not.
    assert free_edge([1, 2, 3], [1.0, 2.0, 1.0], 1) == 1
    with pytest.raises(UsageError, match="5 tokens are not on the grid"):
        free_edge(counts, stairs, 5)


def test_plateaus_of_a_staircase_and_of_a_slope() -> None:
    counts = list(range(1, 33))
    stairs = np.ceil(np.arange(1, 33) / 8)
    assert plateaus(counts, stairs) == tuple(
        Plateau(8 * i + 1, 8 * i + 8, i + 1.0) for i in range(4)
    )
    slope = plateaus(counts, np.arange(1, 33), eps=0.0)
    assert [(p.first, p.last) for p in slope] == [(n, n) for n in counts]


@pytest.mark.parametrize("seed", range(20))
def test_plateaus_cover_all_counts_and_their_edges_are_right_edges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, ms = list(range(10, 40)), rng.random(30) + np.arange(30) / 10
    found = plateaus(counts, ms, 0.05)
    assert [n for p in found for n in range(p.first, p.last + 1)] == counts
    for p in found:
        within = [n for n, t in zip(counts, ms, strict=True) if t <= 1.05 * ms[p.first - 10]]
        assert p.last == max(within)
        assert p.ms == ms[p.last - 10]


def test_the_grid_has_multiples_edges_and_all_tokens() -> None:
    counts = tuple(range(1, 38))
    assert grid(counts, [np.ceil(np.arange(1, 38) / 5)], align=16) == (
        5,
        10,
        15,
        16,
        20,
        25,
        30,
        32,
        35,
        37,
    )


def test_what_is_no_curve() -> None:
    for counts, ms in (([2, 1], [1.0, 2.0]), ([1, 2], [1.0]), ([1, 2], [1.0, float("nan")])):
        with pytest.raises(UsageError):
            plateaus(counts, ms)
