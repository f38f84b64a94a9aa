"""Plans that take what a plateau gives away, and where they lie."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tcompile.methods.context import SiteRule
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.solver import solve
from tcompile.planning.optimise.tables import Tables, flattened, plateau_of
from tests.unit.planning.optimise.instances import instance, staircase


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
    for most, edge in ((18, 16), (24, 24), (30, 24), (8, 8)):
        assert solve(flat, math.inf, Limits(final_most=most, final_least=most - 3)).final in (
            most,
            edge,
        )
    # 10, 12, 14 and 16 tokens take the same time.
    fewer = Limits(final_least=10, final_most=38)
    assert solve(flat, math.inf, fewer).final == 16
    # The same with noise that only ε sees through.
    noisy = replace(flat, mlp_ms=flat.mlp_ms * (1 + 1e-3 * np.arange(19)))
    assert solve(noisy, math.inf, fewer).final == 10
    seen = solve(noisy, math.inf, fewer, eps=0.02)
    assert seen.final == 16
    assert seen.latency_ms <= 1.02 * solve(noisy, math.inf, fewer).latency_ms


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
    plan = solve(free, math.inf, Limits(final_most=8))
    assert (plan.final, len(plan.steps)) == (8, 1)
    assert plan.steps[0].site == "attn:1"  # More tokens: as late as can be.


def test_a_tie_of_other_counts_takes_fewer_steps() -> None:
    """10, 6, 6, 6, 6 tokens with one step, or 10, 7, 7, 5, 5 with two: as many in all."""
    early, late = np.full((2, 4, 4), 9.0)
    early[3, 1], early[3, 2], late[2, 0] = 2.0, 1.0, 1.0
    tables = Tables(
        (5, 6, 7, 10),
        0,
        np.zeros((2, 4)),
        np.zeros((2, 4)),
        np.zeros(4),
        0.0,
        (SiteRule("attn:0"), SiteRule("attn:1")),
        (np.zeros((4, 4)),) * 2,
        (early, late),
    )
    assert [step.after for step in solve(tables, math.inf, Limits(final_most=6)).steps] == [6]


def test_on_which_plateau_a_step_lies() -> None:
    tables = staircase(blocks=2)
    plan = solve(tables, math.inf, Limits(final_most=18))
    (place,) = plateau_of(tables, plan)
    assert (place.first, place.last) == (18, 24)
    assert plan.final == 18  # The loss counts here, and 18 was the most.
    # After attn:1, one MLP and the head.
    assert place.ms == tables.mlp_ms[1, tables.counts.index(24)]
