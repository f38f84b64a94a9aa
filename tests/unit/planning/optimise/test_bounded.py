"""Large instances: how far a trimmed search may be off, what it says of that, how long it takes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tcompile.methods.context import SiteRule
from tcompile.planning.optimise import solver
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.optimise.solver import front, solve
from tcompile.planning.optimise.tables import Plan, Tables, plan_of
from tests.unit.planning.optimise.instances import after_sites, key


def hard(seed: int) -> Tables:
    """Six blocks whose plans lie close together: each step trades much alike."""
    rng = np.random.default_rng(seed)
    counts = np.arange(6, 62, 4)

    def curve() -> Any:
        return np.cumsum(rng.random((6, len(counts))), axis=1)

    sites = [SiteRule(f"attn:{b}") for b in range(6)]
    noise = {site.name: rng.random((14, 14)) + 0.5 for site in sites}
    return Tables.of(
        counts.tolist(),
        0,
        attn_ms=curve(),
        mlp_ms=curve(),
        head_ms=np.zeros(14),
        stem_ms=0.0,
        sites=sites,
        reducer_ms=lambda site, before, after: 0.2,
        loss=lambda site, before, after: (before - after) * noise[site] / 10,
    )


def exactly(tables: Tables, ms: float) -> Plan:
    """The best plan: no label is trimmed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "EFFORT", 10**9)
        return solve(tables, ms)


def test_the_gap_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched with far too few labels: never out of budget, never farther from the best than
    said, and off often enough for that to mean something."""
    off = claimed = 0
    monkeypatch.setattr(solver, "HASTY", 1)
    monkeypatch.setattr(solver, "EFFORT", 1)
    for seed in range(10):
        tables = hard(seed)
        fastest = front(tables)[0].latency_ms
        for share in (0.2, 0.5):
            ms = fastest + share * (tables.dense_ms - fastest)
            exact, plan = exactly(tables, ms), solve(tables, ms)
            assert exact.gap == 0
            assert plan.latency_ms <= ms + 1e-6
            difference = plan.loss - exact.loss
            assert -1e-9 <= difference <= plan.gap + 1e-9
            off += difference > 1e-9
            claimed += plan.gap > 0
    assert off >= 2
    assert claimed >= off


@pytest.mark.parametrize("seed", range(4))
def test_more_effort_ends_in_the_best(seed: int) -> None:
    tables = hard(seed)
    ms = 0.6 * tables.dense_ms
    assert key(solve(tables, ms)) == key(exactly(tables, ms))


def large(seed: int, *, blocks: int = 48, size: int = 200, tokens: int = 1601) -> Tables:
    """A staircase with noise, every block with curves of its own, a site after each half."""
    rng = np.random.default_rng(seed)
    counts = np.unique(np.linspace(64, tokens, size).astype(int))

    def curve(tile: int, base: float, slope: float) -> Any:
        steps = base + slope * np.ceil(counts / tile) * tile + 1e-6 * counts**2
        return steps * (1 + 0.02 * rng.random((blocks, len(counts))))

    sites = [SiteRule(f"{k}:{b}") for b in range(blocks) for k in ("attn", "block")]
    return Tables.of(
        counts.tolist(),
        1,
        attn_ms=curve(64, 0.05, 6e-4),
        mlp_ms=curve(128, 0.02, 1.1e-3),
        head_ms=np.full(len(counts), 0.1),
        stem_ms=0.3,
        sites=[*sites, SiteRule("output")],
        reducer_ms=lambda site, before, after: 0.03 + 1e-5 * before,
        loss=prior_loss("prune", tokens=tokens, prefix=1, blocks=blocks),
    )


def test_48_blocks_of_200_counts_take_less_than_2_seconds() -> None:
    tables = large(0)
    for share, limits in ((0.6, Limits()), (0.8, Limits(final_most=1200))):
        took = []
        for _ in range(2):  # Of this process; the best of two, as others use the caches too.
            begin = time.process_time()
            plan = solve(tables, share * tables.dense_ms, limits)
            took.append(time.process_time() - begin)
            if took[-1] < 1.5:
                break
        assert min(took) < 2
        assert plan.steps
        assert plan.latency_ms <= share * tables.dense_ms + 1e-6
        assert plan_of(tables, after_sites(tables, plan)).latency_ms == plan.latency_ms


def test_a_large_plan_is_as_good_as_any_on_the_hull() -> None:
    """Plans of the hull, found without labels: within their latency none loses less."""
    tables = large(1, blocks=12, size=60, tokens=257)
    for point in front(tables, points=8):
        plan = solve(tables, point.latency_ms)
        assert plan.latency_ms <= point.latency_ms + 1e-6
        assert plan.loss <= point.loss + 1e-9
        assert plan.loss >= point.loss - plan.gap - 1e-9
