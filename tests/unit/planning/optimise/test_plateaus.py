"""Plateaus: right edges, and plans that take what a plateau gives away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.planning.optimise import (
    Goal,
    Limits,
    Plateau,
    SiteRule,
    free_edge,
    grid,
    plateaus,
    right_edge,
    sitting,
    solve,
)
from tcompile.planning.optimise.plateaus import flattened
from tests.unit.planning.optimise.instances import instance, staircase


def test_right_edges() -> None:
    counts, ms = [2, 4, 6, 8, 10], [1.0, 1.005, 1.2, 1.0, 2.0]
    assert right_edge(counts, ms, 2) == 8  # Beyond a count that happens to be slow.
    assert right_edge(counts, ms, 6) == 8
    assert right_edge(counts, ms, 10) == 10
    assert right_edge(counts, ms, 2, eps=1.0) == 10
    assert right_edge(counts, ms, 4, eps=0.0) == 8
    with pytest.raises(UsageError, match="5 tokens are not on the grid"):
        right_edge(counts, ms, 5)


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
        assert p.last == max(within) == right_edge(counts, ms, p.first, 0.05)
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


@pytest.mark.parametrize("seed", range(20))
def test_flattened_times_are_no_lower_and_at_most_eps_higher(seed: int) -> None:
    tables = instance(seed, size=12, ties=False)
    flat = flattened(tables, 0.3)
    for name in ("attn_ms", "mlp_ms", "head_ms"):
        before, after = getattr(tables, name), getattr(flat, name)
        assert np.all(after >= before)
        assert np.all(after <= 1.3 * before + 1e-12)
    assert np.any(flat.attn_ms > tables.attn_ms)


def test_a_plan_takes_what_more_tokens_do_not_cost() -> None:
    """With losses that do not tell counts apart, the tie goes to more tokens: the right edge."""
    tables = staircase(blocks=1)
    flat = replace(tables, loss=(np.full_like(tables.loss[0], 0.25),))
    goal = Goal("latency", loss=1.0)
    for most, edge in ((18, 16), (24, 24), (30, 24), (8, 8)):
        assert solve(flat, goal, Limits(final_most=most, final_least=most - 3)).final in (
            most,
            edge,
        )
    # 10, 12, 14 and 16 tokens take the same time.
    assert solve(flat, goal, Limits(final_least=10)).final == 16
    # The same with noise that only ε sees through.
    noisy = replace(flat, mlp_ms=flat.mlp_ms * (1 + 1e-3 * np.arange(19)))
    assert solve(noisy, goal, Limits(final_least=10)).final == 10
    seen = solve(noisy, goal, Limits(final_least=10), eps=0.02)
    assert seen.final == 16
    assert seen.latency_ms <= 1.02 * solve(noisy, goal, Limits(final_least=10)).latency_ms


def test_a_tie_takes_fewer_steps() -> None:
    """Free reducers and losses that add up: two steps at one count of tokens are one too many."""
    tables = staircase(blocks=2)
    sites = len(tables.sites)
    n = np.asarray(tables.counts, float)
    drop = np.maximum(n[:, None] - n[None, :], 0) / 8
    free = replace(
        tables,
        reducer_ms=(np.zeros_like(drop),) * sites,
        loss=(drop,) * sites,
        mlp_ms=tables.mlp_ms * 0,
        attn_ms=tables.attn_ms * 0,
    )
    plan = solve(free, Goal("loss"), Limits(final_most=8))
    assert (plan.final, len(plan.steps)) == (8, 1)
    assert plan.steps[0].site == "attn:1"  # More tokens: as late as can be.


def test_one_step_does_what_two_in_one_place_would() -> None:
    """Nothing runs between the last block and the output: only the number of steps differs."""
    tables = staircase(blocks=1)
    n = np.asarray(tables.counts, float)
    drop = np.maximum(n[:, None] - n[None, :], 0) / 8
    two = replace(
        tables,
        sites=(SiteRule("block:0"), SiteRule("output")),
        reducer_ms=(drop * 0,) * 2,
        loss=(drop,) * 2,
    )
    for most in (4, 8, 20):
        assert len(solve(two, Goal("loss"), Limits(final_most=most)).steps) == 1


def test_where_a_plan_sits() -> None:
    tables = staircase(blocks=2)
    plan = solve(tables, Goal("loss"), Limits(final_most=18, max_steps=1))
    (place,) = sitting(tables, plan)
    assert (place.first, place.last) == (18, 24)
    assert plan.final == 18  # The loss counts here, and 18 was the most.
    assert place.ms == tables.mlp_ms[1, tables.index(24)]  # After attn:1, one MLP and the head.


def test_what_is_no_curve() -> None:
    for counts, ms in (([2, 1], [1.0, 2.0]), ([1, 2], [1.0]), ([1, 2], [1.0, float("nan")])):
        with pytest.raises(UsageError):
            plateaus(counts, ms)
