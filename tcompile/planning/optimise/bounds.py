"""Lower bounds by Lagrange multipliers, and a first plan: what lets the search leave most out.

For budgets on latency, minimising f subject to latency ≤ B, and any μ ≥ 0:
min over plans of f + μ·(latency − B) ≤ the best f. The μ that makes the left side largest is found
along the lower hull of (latency, f) by Handler and Zang's method (Networks 10, 1980): each μ is the
slope between two plans, one within the budget and one beyond it, until no plan lies below their
line. Every edge or label whose bound exceeds the best plan at hand can be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tcompile.planning.optimise.chain import BITS, Chain
from tcompile.planning.optimise.limits import Mask
from tcompile.planning.optimise.paths import (
    Path,
    Weights,
    after_step,
    edge_costs,
    shortest,
    so_far,
    to_go,
)
from tcompile.planning.optimise.tables import Floats

Axis = Literal["ms", "loss"]


@dataclass(frozen=True)
class Problem:
    """Minimise `weights` within budgets in quanta, where there are any."""

    weights: Weights
    ms: int | None = None
    loss: int | None = None

    def holds(self, path: Path) -> bool:
        """Whether a plan keeps to the budgets."""
        return (self.ms is None or path.ms <= self.ms) and (
            self.loss is None or path.loss <= self.loss
        )

    def budgets(self) -> Iterator[tuple[Axis, int]]:
        if self.ms is not None:
            yield "ms", self.ms
        if self.loss is not None:
            yield "loss", self.loss


@dataclass(frozen=True, eq=False)
class Bound:
    """What a plan worth looking at keeps to: weighted cost ≤ limit.

    Attributes:
        limit: of a budget, or of the best plan at hand: its objective + `offset`, which is the
            multiplier times its budget.
        go, past: [S + 1, K, F, G], the least weighted cost to go, and so far.
    """

    weights: Weights
    limit: float
    go: Floats
    past: Floats
    offset: float | None = None

    @property
    def limit_up_to_rounding(self) -> float:
        scale = (self.weights.ms + self.weights.loss) * 2.0**BITS
        return self.limit + 1e-11 * scale


def bound(
    chain: Chain,
    weights: Weights,
    limit: float,
    go: Floats | None = None,
    offset: float | None = None,
) -> Bound:
    """A bound with its costs so far and to go.

    Args:
        go: of `to_go` with the same weights, if at hand.
    """
    go = to_go(chain, weights) if go is None else go
    return Bound(weights, limit, go, so_far(chain, weights), offset)


@dataclass(frozen=True, eq=False)
class Start:
    """What is known before the search.

    Attributes:
        bounds: for labels and edges.
        best: the best plan at hand within the budgets, or None.
        lower: no plan is better.
        unreachable: budgets that no plan keeps even alone, with the least there is, in quanta.
    """

    bounds: tuple[Bound, ...]
    best: Path | None
    lower: float
    unreachable: Mapping[Axis, int]


def start(chain: Chain, problem: Problem) -> Start | None:
    """Bounds and a first plan, or None if no plan ends in an allowed count."""
    free_go = to_go(chain, problem.weights)
    free = shortest(chain, problem.weights, free_go)
    if free is None:
        return None
    lower = problem.weights.of(free)
    if problem.holds(free):
        only = bound(chain, problem.weights, lower, free_go, 0.0)
        return Start((only,), free, lower, {})
    bounds, plans, unreachable = [], [free], {}
    multipliers: list[tuple[Weights, float]] = [(problem.weights, 0.0)]
    for axis, budget in problem.budgets():
        alone = Weights(float(axis == "ms"), float(axis == "loss"))
        go = to_go(chain, alone)
        least = shortest(chain, alone, go)
        assert least is not None
        if getattr(least, axis) > budget:
            unreachable[axis] = getattr(least, axis)
            continue
        bounds.append(bound(chain, alone, budget, go))
        plans.append(least)
        if getattr(free, axis) > budget:
            weights, slope, more = _descend(chain, problem.weights, axis, budget, free, least)
            multipliers.append((weights, slope * budget))
            plans += more
    if unreachable:
        return Start((), None, lower, unreachable)
    best = min(filter(problem.holds, plans), key=problem.weights.of, default=None)
    for weights, offset in multipliers:
        go = to_go(chain, weights)
        lower = max(lower, float(go[0, 0, 0, -1]) - offset)
        bounds.append(bound(chain, weights, np.inf, go, offset))
    return Start(tightened(bounds, problem, best), best, lower, {})


def tightened(bounds: Iterable[Bound], problem: Problem, best: Path | None) -> tuple[Bound, ...]:
    """The bounds with a plan at hand, which what is left must be as good as."""
    if best is None:
        return tuple(bounds)
    value = problem.weights.of(best)
    return tuple(
        b if b.offset is None else replace(b, limit=min(value + b.offset, b.limit)) for b in bounds
    )


def _descend(
    chain: Chain, weights: Weights, axis: Axis, budget: int, beyond: Path, within: Path
) -> tuple[Weights, float, list[Path]]:
    """The multiplier of a budget: the weights with it, itself, and the plans met on the way."""
    met, slope, sloped = [], 0.0, weights
    for _ in range(50):
        rise = weights.of(within) - weights.of(beyond)
        slope = max(rise, 0.0) / (getattr(beyond, axis) - getattr(within, axis))
        sloped = Weights(
            weights.ms + slope * (axis == "ms"), weights.loss + slope * (axis == "loss")
        )
        plan = shortest(chain, sloped)
        assert plan is not None
        met.append(plan)
        below = sloped.of(beyond) - sloped.of(plan)
        if below <= 1e-12 * abs(sloped.of(beyond)) or slope == 0.0:
            break
        if getattr(plan, axis) <= budget:
            within = plan
        else:
            beyond = plan
    return sloped, slope, met


def worthwhile(chain: Chain, bounds: tuple[Bound, ...]) -> Mask:
    """[S, G, G]: the steps that some plan within all bounds, each taken alone, may take."""
    found: Mask = chain.edges.copy()
    for each in bounds:
        if not np.isfinite(each.limit):
            continue
        for i in range(chain.sites):
            cost = edge_costs(chain, i, each.weights)
            here = each.past[i, :, 0] + each.weights.ms * chain.before[i]
            fits = np.zeros(cost.shape, bool)
            for before, target in zip(here, after_step(chain, i, each.go[i + 1]), strict=True):
                fits |= before[:, None] + cost + target <= each.limit_up_to_rounding
            found[i] &= fits
    return found
