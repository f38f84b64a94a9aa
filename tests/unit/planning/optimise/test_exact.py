"""The optimiser against brute force, with and without every constraint."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import SiteRule
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.solver import front, solve
from tcompile.planning.optimise.tables import Plan, Tables, plan_of
from tests.unit.planning.optimise.instances import (
    Whole,
    after_sites,
    best,
    constrained,
    every,
    instance,
    key,
)


def budgets(wholes: list[Whole], seed: int) -> list[float]:
    """Budgets that matter: any, at, between, and beyond what plans take."""
    rng = np.random.default_rng(seed)
    ms = sorted({w.ms for w in wholes} or {1.0})
    some = [float(rng.choice(ms)) + float(rng.integers(-1, 2)) / 16 for _ in range(6)]
    return [math.inf, ms[0], *(max(budget, 0.0) for budget in some)]


def check(tables: Tables, limits: Limits, seed: int) -> None:
    """Each budget: the same loss, latency, tokens and steps; or the same refusal."""
    wholes = list(every(tables, limits))
    known = {w.counts: w for w in wholes}

    def same(plan: Plan, expected: Whole) -> None:
        assert key(plan) == pytest.approx(expected.key, abs=1e-9)
        assert plan.gap == 0
        whole = known[tuple(after_sites(tables, plan))]  # The limits allow it.
        assert (plan.latency_ms, plan.loss) == pytest.approx((whole.ms, whole.loss), abs=1e-9)

    for budget in budgets(wholes, seed):
        expected = best(wholes, budget)
        if expected is None:
            with pytest.raises(UsageError):
                solve(tables, budget, limits)
        else:
            same(solve(tables, budget, limits), expected)
    if wholes:
        fastest = min(w.ms for w in wholes)
        expected = best(wholes, fastest)
        assert expected is not None
        same(front(tables, limits)[0], expected)


@pytest.mark.parametrize("seed", range(40))
def test_without_constraints(seed: int) -> None:
    check(instance(seed), Limits(), seed)


@pytest.mark.parametrize("seed", range(80))
def test_with_random_constraints(seed: int) -> None:
    check(*constrained(instance(1000 + seed), seed), seed)


@pytest.mark.parametrize("seed", range(20))
def test_of_any_numbers(seed: int) -> None:
    check(*constrained(instance(2000 + seed, ties=False), seed), seed)


def check_front(tables: Tables, limits: Limits) -> None:
    """The hull of all plans, with both ends, and none of all below any of its lines."""
    wholes = list(every(tables, limits))
    if not wholes:
        with pytest.raises(UsageError, match="no allowed steps end"):
            front(tables, limits)
        return
    points: list[tuple[float, float]] = []
    for w in sorted(wholes, key=lambda w: (w.ms, w.loss)):
        if not points or w.loss < points[-1][1]:
            points.append((w.ms, w.loss))
    hull = [(p.latency_ms, p.loss) for p in front(tables, limits)]
    assert set(hull) <= set(points)  # Multiples of 1/8.
    assert (hull[0], hull[-1]) == (points[0], points[-1])
    for (a, b), (c, d) in pairwise(hull):
        for x, y in points:
            assert (c - a) * (y - b) >= (x - a) * (d - b) - 1e-9


EACH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"topk": 12}, {}),
    ({"final_least": 12}, {}),
    ({"final_most": 25}, {}),
    ({"final_least": 8, "final_most": 20}, {}),
    ({}, {"granularity": 3}),
    ({}, {"least": 10}),
    ({}, {"most_dropped": 0.5}),
    ({"final_most": 20}, {"most_dropped": 0.5}),
]


@pytest.mark.parametrize(("limits", "rule"), EACH, ids=lambda d: "-".join(d) or "none")
def test_each_constraint(limits: dict[str, Any], rule: dict[str, Any]) -> None:
    bites = 0
    for seed in range(5):
        tables = instance(3000 + seed, blocks=2, size=6)
        rules = tuple(SiteRule(s.name, **rule) for s in tables.sites)
        tight = replace(tables, sites=rules)
        check(tight, Limits(**limits), seed)
        bites += len(list(every(tables, Limits()))) != len(list(every(tight, Limits(**limits))))
    assert bites, "a constraint that forbids nothing is not tested"


@pytest.mark.parametrize("seed", range(12))
def test_one_step_a_block_up_to_the_output(seed: int) -> None:
    """Between attention and MLP, after it, and at the output: all three are of the last block.
    With losses that grow with the square of what leaves at once, two steps would be better."""
    tables = instance(6000 + seed, blocks=2)
    n, rng = np.asarray(tables.counts), np.random.default_rng(seed)
    names = ("attn:0", "attn:1", "block:1", "output")
    loss = tuple((n[:, None] - n[None, :]) ** 2 / 8 + rng.integers(0, 3, (5, 5)) for _ in names)
    full = replace(
        tables,
        sites=tuple(map(SiteRule, names)),
        reducer_ms=(np.zeros((5, 5)),) * 4,
        loss=loss,
        head_ms=8.0 * np.arange(5),
    )
    for limits in (Limits(), Limits(final_most=full.counts[0])):
        check(full, limits, seed)
        check_front(full, limits)
        for plan in front(full, limits):
            sites = [step.site for step in plan.steps]
            assert len({SiteName(s).depth(2)[0] for s in sites}) == len(sites)


def test_many_steps_where_many_are_best() -> None:
    """Losses that grow with the square of what leaves at once: the more steps the better."""
    tables = instance(7, blocks=4, size=7)
    n, names = np.asarray(tables.counts), [f"attn:{b}" for b in range(4)] + ["block:1", "block:2"]
    names.sort(key=lambda s: SiteName(s).depth(4))
    loss, free = (n[:, None] - n[None, :]) ** 2 / 8, np.zeros((7, 7))
    many = replace(
        tables, sites=tuple(map(SiteRule, names)), reducer_ms=(free,) * 6, loss=(loss,) * 6
    )
    limits = Limits(final_most=tables.counts[0])
    check(many, limits, 0)
    assert len(solve(many, math.inf, limits).steps) == 4


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_that_of_all_plans(seed: int) -> None:
    tables, limits = constrained(instance(4000 + seed), seed)
    check_front(tables, limits)


@pytest.mark.parametrize("seed", range(40))
def test_a_refusal_names_the_nearest(seed: int) -> None:
    tables, limits = constrained(instance(5000 + seed, blocks=2), seed)
    wholes = list(every(tables, limits))
    if not wholes:
        return
    fastest = min(w.ms for w in wholes)
    if fastest > 0:
        with pytest.raises(UsageError) as caught:
            solve(tables, fastest * 0.9, limits)
        assert _named(caught.value, r"fastest takes (\S+) ms") == pytest.approx(fastest, rel=1e-3)
        hint = _named(caught.value, r"ask for --latency (\S+) or more")
        assert solve(tables, hint, limits).latency_ms <= hint <= fastest * 1.01


def _named(error: UsageError, pattern: str) -> float:
    found = re.search(pattern, str(error))
    assert found, error
    return float(found[1].rstrip("):,"))


def test_brute_force_counts_what_it_should() -> None:
    # Monotone sequences of 5 counts over s sites of as many blocks: C(s + 4, 4).
    tables = instance(0, blocks=6)
    blocks = [s.place(6)[0] for s in tables.sites]
    alone = [i for i, b in enumerate(blocks) if b not in blocks[:i]]
    tables = replace(
        tables,
        sites=tuple(tables.sites[i] for i in alone),
        reducer_ms=tuple(tables.reducer_ms[i] for i in alone),
        loss=tuple(tables.loss[i] for i in alone),
    )
    sites = len(alone)
    wholes = list(every(tables, Limits()))
    assert len(wholes) == np.prod(np.arange(sites + 1, sites + 5)) // 24
    # Two sites in one block: a step at one of them, to any of 4 counts, or none.
    both = replace(
        instance(0, blocks=1),
        sites=(SiteRule("attn:0"), SiteRule("block:0")),
        reducer_ms=tables.reducer_ms[:2],
        loss=tables.loss[:2],
    )
    assert len(list(every(both, Limits()))) == 2 * 4 + 1
    for whole in wholes[::7]:
        plan = plan_of(tables, whole.counts)
        assert key(plan) == pytest.approx(whole.key, abs=1e-12)
