"""The optimiser against brute force: every goal, with and without every constraint."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.planning.optimise import Goal, Limits, SiteRule, Tables, front, plan_of, solve
from tests.unit.planning.optimise.instances import Whole, best, constrained, every, instance, key


def goals(wholes: list[Whole], seed: int) -> list[Goal]:
    """Of every kind, with budgets that matter: at, between, and beyond what plans take."""
    rng = np.random.default_rng(seed)
    ms, loss = (sorted({getattr(w, k) for w in wholes} or {1.0}) for k in ("ms", "loss"))

    def of(values: list[float]) -> float:
        return max(float(rng.choice(values)) + float(rng.integers(-1, 2)) / 16, 0.0)

    trade = float(rng.choice([0.0, 0.25, 1.0, 3.0]))
    return [
        Goal("loss"),
        Goal("latency"),
        Goal("both", trade),
        Goal("loss", latency_ms=of(ms)),
        Goal("latency", loss=of(loss)),
        Goal("loss", latency_ms=of(ms), loss=of(loss)),
        Goal("latency", latency_ms=of(ms), loss=of(loss)),
        Goal("both", trade, latency_ms=of(ms)),
        Goal("both", trade, loss=of(loss)),
        Goal("both", trade, latency_ms=of(ms), loss=of(loss)),
    ]


def check(tables: Tables, limits: Limits, seed: int) -> None:
    """Each goal: the same objective, loss, latency, tokens and steps; or the same refusal."""
    wholes = list(every(tables, limits))
    known = {w.counts: w for w in wholes}
    for goal in goals(wholes, seed):
        expected = best(wholes, goal)
        if expected is None:
            with pytest.raises(UsageError):
                solve(tables, goal, limits)
            continue
        plan = solve(tables, goal, limits)
        assert key(plan, goal) == pytest.approx(expected.key(goal), abs=1e-9), (seed, goal)
        assert plan.gap == 0
        assert plan.objective == pytest.approx(expected.key(goal)[0], abs=1e-9)
        at, counts = tables.tokens, []
        for site in tables.sites:
            at = plan.counts.get(site.name, at)
            counts.append(at)
        same = known[tuple(counts)]  # The limits allow it.
        assert (plan.latency_ms, plan.loss) == pytest.approx((same.ms, same.loss), abs=1e-9)


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
    """All of the front, and its hull."""
    wholes = list(every(tables, limits))
    if not wholes:
        with pytest.raises(UsageError, match="no allowed steps end"):
            front(tables, limits, exact=True)
        return
    points: list[tuple[float, float]] = []
    for w in sorted(wholes, key=lambda w: (w.ms, w.loss)):
        if not points or w.loss < points[-1][1]:
            points.append((w.ms, w.loss))
    found = front(tables, limits, exact=True)
    assert found.complete
    assert [(p.latency_ms, p.loss) for p in found.plans] == points  # Multiples of 1/8.
    # The hull: of these points, with both ends, and none of all below any of its lines.
    hull = [(p.latency_ms, p.loss) for p in front(tables, limits).plans]
    assert set(hull) <= set(points)
    assert (hull[0], hull[-1]) == (points[0], points[-1])
    for (a, b), (c, d) in pairwise(hull):
        for x, y in points:
            assert (c - a) * (y - b) >= (x - a) * (d - b) - 1e-9


EACH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"align": 4}, {}),
    ({"topk": 12}, {}),
    ({"max_steps": 0}, {}),
    ({"max_steps": 1}, {}),
    ({"max_steps": 2}, {}),
    ({"max_steps": 4}, {}),
    ({"once_per_block": True}, {}),
    ({"final_least": 12}, {}),
    ({"final_most": 25}, {}),
    ({"final_least": 8, "final_most": 20}, {}),
    ({}, {"granularity": 3}),
    ({}, {"least": 10}),
    ({}, {"most_dropped": 0.5}),
    ({"max_steps": 2, "once_per_block": True}, {"most_dropped": 0.5}),
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
    limits = Limits(once_per_block=True)
    check(full, limits, seed)
    check(full, replace(limits, final_most=full.counts[0]), seed)
    check_front(full, limits)
    assert front(full, exact=True) != front(full, limits, exact=True)


@pytest.mark.parametrize("most", [3, 4, 5, 6])
def test_as_many_steps_as_allowed_where_many_are_best(most: int) -> None:
    """Losses that grow with the square of what leaves at once: the more steps the better."""
    tables = instance(7, blocks=4, size=7)
    n, names = np.asarray(tables.counts), [f"attn:{b}" for b in range(4)] + ["block:1", "block:2"]
    names.sort(key=lambda s: SiteName(s).depth(4))
    loss, free = (n[:, None] - n[None, :]) ** 2 / 8, np.zeros((7, 7))
    many = replace(
        tables, sites=tuple(map(SiteRule, names)), reducer_ms=(free,) * 6, loss=(loss,) * 6
    )
    limits = Limits(max_steps=most, final_most=tables.counts[0])
    check(many, limits, most)
    assert len(solve(many, Goal("loss"), limits).steps) == most


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
            solve(tables, Goal("loss", latency_ms=fastest * 0.9), limits)
        assert _named(caught.value, r"fastest takes (\S+) ms") == pytest.approx(fastest, rel=1e-3)
    # Both budgets: the loss is what cannot be had within the ms, or the ms within the loss.
    losses = sorted({w.loss for w in wholes})
    for goal in (
        Goal("loss", latency_ms=fastest, loss=losses[0]),
        Goal("latency", latency_ms=fastest, loss=losses[0]),
        Goal("both", 1.0, latency_ms=fastest, loss=losses[0]),
    ):
        if best(wholes, goal) is not None:
            continue
        with pytest.raises(UsageError) as caught:
            solve(tables, goal, limits)
        if goal.minimise == "loss":
            least = min(w.loss for w in wholes if w.ms <= fastest)
            assert _named(caught.value, r"least loss is (\S+)") == pytest.approx(least, rel=1e-3)
        else:
            least = min(w.ms for w in wholes if w.loss <= losses[0])
            assert _named(caught.value, r"fastest takes (\S+) ms") == pytest.approx(least, rel=1e-3)


def _named(error: UsageError, pattern: str) -> float:
    found = re.search(pattern, str(error))
    assert found, error
    return float(found[1].rstrip("):,"))


def test_brute_force_counts_what_it_should() -> None:
    # Monotone sequences of 5 counts over s sites: C(s + 4, 4).
    tables = instance(0)
    sites = len(tables.sites)
    wholes = list(every(tables, Limits()))
    assert len(wholes) == np.prod(np.arange(sites + 1, sites + 5)) // 24
    for whole in wholes[::7]:
        plan = plan_of(tables, whole.counts)
        assert (plan.latency_ms, plan.loss) == pytest.approx((whole.ms, whole.loss), abs=1e-12)
        assert (plan.tokens, len(plan.steps)) == (whole.tokens, whole.steps)
