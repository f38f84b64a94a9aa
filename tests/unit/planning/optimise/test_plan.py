"""Plans and tables: what they add up to, when dense is the answer, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteRule
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.solver import front, solve
from tcompile.planning.optimise.tables import Step, Tables, dense_plan, plan_of
from tests.unit.planning.optimise.instances import instance, staircase


def test_a_plan_by_hand() -> None:
    n = [4, 8]
    tables = Tables.of(
        n,
        1,
        attn_ms=[[1, 2], [3, 5]],
        mlp_ms=[[10, 20], [30, 50]],
        head_ms=[100, 200],
        stem_ms=1000,
        sites=[SiteRule("attn:0"), SiteRule("block:1"), SiteRule("output")],
        reducer_ms=lambda site, i, o: 0.5 + (site == "output"),
        loss=lambda s, i, o: i - o,
    )
    early, late, out, none = (
        plan_of(tables, c) for c in ([4, 4, 4], [8, 4, 4], [8, 8, 4], [8, 8, 8])
    )
    assert early.latency_ms == 1000 + 2 + 0.5 + 10 + 3 + 30 + 100
    assert late.latency_ms == 1000 + 2 + 20 + 5 + 50 + 0.5 + 100
    assert out.latency_ms == late.latency_ms + 1
    assert none.latency_ms == none.dense_ms == 1000 + 2 + 20 + 5 + 50 + 200
    assert (early.attention, early.mlp, early.final) == ((8, 4), (4, 4), 4)
    assert early.steps == (Step("attn:0", 8, 4, 0.5, 4.0),)
    assert (early.loss, none.loss, none.steps) == (4, 0, ())
    assert early.speedup == pytest.approx(1277 / 1145.5)


def test_dense_where_nothing_beats_it_and_fewer_where_they_are_asked_for() -> None:
    """Latency that does not fall: the steps' own cost is never paid back."""
    tables = staircase(tile=64)
    assert front(tables) == (dense_plan(tables),)
    forced = front(tables, Limits(final_most=20))[0]
    assert forced.steps
    assert forced.final <= 20
    assert forced.latency_ms > forced.dense_ms


def test_a_model_without_sites_is_dense() -> None:
    tables = replace(staircase(), sites=(), reducer_ms=(), loss=())
    assert not solve(tables, math.inf).steps
    assert front(tables) == (dense_plan(tables),)
    for ask in (front, partial(solve, latency_ms=math.inf)):
        with pytest.raises(UsageError, match="no allowed steps end"):
            ask(tables, limits=Limits(final_most=10))


def test_a_budget_at_the_dense_latency_keeps_all_tokens() -> None:
    for seed in range(10):
        tables = instance(seed, ties=False)
        plan = solve(tables, tables.dense_ms)
        assert plan.loss == 0


def test_a_share_is_met_whatever_its_binary_form() -> None:
    """0.29 · 100 is less than 29 in floats; 29 of 100 patches may leave all the same."""
    zero = np.zeros((1, 2))
    step = (np.zeros((2, 2)),)
    tables = Tables(
        (71, 100), 0, zero, zero, zero[0], 0.0, (SiteRule("attn:0", 1, 1, 0.29),), step, step
    )
    assert solve(tables, math.inf, Limits(final_most=71)).final == 71
