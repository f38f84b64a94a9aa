"""Counts to measure next: beside steps, and nowhere on a line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcompile.profiling.curve import Curve, Figure
from tcompile.profiling.sampling import first_counts, refined, settled


def explored(
    time: Callable[[int], float],
    tokens: int = 197,
    prefix: int = 1,
    grain: int = 1,
    tolerance: float = 0.02,
    spread: float = 0.0,
) -> Curve:
    """Return what a measurement does, with times that a function knows."""

    def figure(n: int) -> Figure:
        return Figure(time(n), time(n) - spread, time(n) + spread, 9)

    points = {n: figure(n) for n in [*first_counts(tokens, prefix, grain), tokens]}
    while True:
        level = refined(sorted(points.items()), prefix, grain, tolerance)
        assert not set(level) & set(points), "no count twice"
        if not level:
            return Curve.of(points.items())
        points |= {n: figure(n) for n in level}


def test_a_line_is_looked_at_in_few_places() -> None:
    assert len(explored(lambda n: 0.5 + 0.1 * n).points) <= 13
    one_round = [(n, Figure.modelled(float(n))) for n in (8, 40, 72, 104, 136, 168, 197)]
    assert refined(one_round[:2], 1, 1, 0.02) == []


def test_noise_is_no_step() -> None:
    """Times that leave the line by less than their own spread."""
    quiet = explored(lambda n: 0.1 * n + 0.4 * (n % 3), spread=0.5)
    assert len(quiet.points) <= 13


@pytest.mark.parametrize("width", [32, 48, 64, 128])
def test_a_staircase_is_found(width: int) -> None:
    """Every step lies between two counts that are at most twelve apart, with few looked at."""
    found = explored(lambda n: float(-(-n // width)))
    assert len(found.points) <= 32
    for edge in range(width, 197, width):
        below = max(n for n in found.counts if n <= edge)
        above = min(n for n in found.counts if n > edge)
        assert above - below <= 16, (edge, found.counts)
        assert found.at(above) - found.at(below) == 1.0


def test_a_lone_cliff_is_narrowed_down() -> None:
    found = explored(lambda n: 5.0 if n > 129 else 3.0, tokens=1370)
    below = max(n for n in found.counts if n <= 129)
    above = min(n for n in found.counts if n > 129)
    assert above - below <= 16
    assert len(found.points) <= 30


def test_groups_of_tokens_stay_whole() -> None:
    found = explored(lambda n: float(-(-n // 64)), tokens=257, grain=4)
    assert all((n - 1) % 4 == 0 for n in found.counts)


@pytest.mark.parametrize(
    ("tokens", "prefix", "grain"),
    [(17, 1, 1), (17, 1, 4), (5, 1, 1), (6, 5, 1), (1370, 1, 1), (65, 0, 16)],
)
def test_first_counts_can_be(tokens: int, prefix: int, grain: int) -> None:
    counts = first_counts(tokens, prefix, grain)
    assert counts == sorted(set(counts))
    assert all(prefix < n < tokens for n in counts)
    if grain > 1:
        assert all((n - prefix) % grain == 0 for n in counts)


def test_counts_are_aligned() -> None:
    assert [settled(n, 1, 1) for n in (1, 7, 11, 12.1, 100)] == [2, 8, 8, 16, 96]
    assert [settled(n, 1, 4) for n in (1, 7, 11, 100)] == [5, 9, 9, 101]
