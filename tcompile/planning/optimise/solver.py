"""The plan of least loss within a latency.

minimise    loss
over        counts n_0 ≥ n_1 ≥ … at the sites, every step within the limits, one a block
subject to  latency ≤ B, tokens that leave within bounds

First the dual: for any μ ≥ 0, the least of loss + μ·(latency − B) over all plans is at most the
least loss. The best μ is found along the lower hull of (latency, loss) by Handler and Zang's method
(Networks 10, 1980), which also meets a good plan. Then label setting, block by block: a label is a
partial plan, and whatever cannot keep to B, or cannot be as good as the plan at hand by the dual,
is omitted. Among labels of one count, a dominates b if it is no worse in latency and loss, and,
where both are equal, carries more tokens, or as many in no more steps. All four add up along a
plan, so that whatever completes b completes a as well or better: to omit b is exact.

Where more labels remain than `effort`, they are trimmed: losses are cut into buckets of one width,
and of each count's labels in a bucket the fastest stays, so that the budget holds all the same.
`Plan.gap` says how much that may have cost: the lesser of the widths trimmed and of the distance to
the dual.

Among plans with the same loss: the less latency, then the more tokens carried, then the fewer
steps. Equal means to 2⁻³⁸ of the largest sum (`chain`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.chain import (
    BITS,
    FASTEST,
    LEAST_LOSS,
    STAY,
    Chain,
    Edges,
    Ints,
    Limits,
    Mask,
    Path,
    Weights,
    chain,
    shortest,
    so_far,
    to_go,
)
from tcompile.planning.optimise.plan import Plan, plan_of
from tcompile.planning.optimise.plateaus import flattened
from tcompile.planning.optimise.tables import Floats, Tables

#: Labels held behind a block by default: one to two seconds at most for 48 blocks and 200 counts,
#: where 10,000 proved every plan tried the best, in up to three.
EFFORT = 3000
#: Labels of the first search, which only looks for a good plan.
HASTY = 200


@dataclass(frozen=True, eq=False)
class Bound:
    """A limit that every plan worth looking at keeps to: weighted cost ≤ limit.

    Attributes:
        past, go: the least weighted cost in front of each block, and from there to the end.
    """

    weights: Weights
    limit: float
    past: Floats
    go: Floats

    def admits(self, i: int, after: Ints, cost: Floats) -> Mask:
        """Return whether plans of such weighted costs behind block i can keep to the limit."""
        rounding = 1e-11 * (self.weights.ms + self.weights.loss) * 2.0**BITS
        return np.asarray(cost + self.go[i + 1, after] <= self.limit + rounding)

    def admits_edges(self, i: int, edges: Edges) -> Mask:
        """Return whether some plan within the limit takes an edge of block i."""
        cost = self.weights.each(edges.ms, edges.loss)
        return self.admits(i, edges.after, self.past[i, edges.before] + cost)


@dataclass(frozen=True, eq=False)
class Labels:
    """Partial plans as parallel arrays; `parent` is the label in front of the block."""

    at: Ints
    ms: Ints
    loss: Ints
    tokens: Ints
    steps: Ints
    site: Ints
    parent: Ints

    def take(self, which: Ints | Mask) -> Labels:
        """Return some of them."""
        return Labels(*(array[which] for array in vars(self).values()))


def solve(
    tables: Tables,
    latency_ms: float | None = None,
    limits: Limits | None = None,
    *,
    eps: float = 0.0,
    effort: int | None = EFFORT,
) -> Plan:
    """Return the plan that loses least.

    Args:
        latency_ms: the budget; None: any.
        eps: latencies of a plateau that differ by no more than this share count as equal, as the
            highest of them, so that a plan has all the tokens that the plateau gives away. The
            plan's latency is that of the tables, and no higher than the budget.
        effort: labels to hold behind a block; None: all that may matter, exact however long it
            takes.

    Raises:
        UsageError: no plan keeps to the limits and the budget; says what the fastest one takes.
    """
    if latency_ms is not None and not 0 <= latency_ms < float("inf"):
        raise UsageError(
            f"{latency_ms} is not a budget: it must be finite and not negative", where="latency_ms"
        )
    links = chain(flattened(tables, eps) if eps > 0 else tables, limits or Limits())
    fastest = fastest_path(links)
    budget = None if latency_ms is None else links.budget(latency_ms)
    if budget is not None and fastest.ms > budget:
        raise UsageError(
            f"no plan takes at most {latency_ms:.4g} ms: "
            f"the fastest takes {fastest.ms * links.ms:.4g} ms",
            where="latency budget",
            hint="allow more ms or more sites",
        )
    path, gap = best_path(links, fastest, budget, effort)
    return replace(plan_of(tables, path.counts(tables)), gap=gap * links.loss)


def fastest_path(links: Chain) -> Path:
    """Return a path of least latency.

    Raises:
        UsageError: no allowed steps end in a count that was asked for.
    """
    path = shortest(links, FASTEST)
    if path is None:
        raise UsageError(
            "no allowed steps end in a token count that was asked for",
            where="plan",
            hint="ask for another count, or loosen the limits",
        )
    return path


def best_path(
    links: Chain, fastest: Path, budget: int | None, effort: int | None = EFFORT
) -> tuple[Path, float]:
    """Return the path of least loss within a budget in quanta, and how much less it could lose.

    Args:
        fastest: any path of least latency; it must be within the budget.
    """
    best = shortest(links, LEAST_LOSS)
    assert best is not None
    most_ms = 2 ** (BITS + 1) if budget is None else budget
    slope = 0.0
    if best.ms > most_ms:
        slope, best = _multiplier(links, most_ms, best, fastest)
    latency, dual = (
        Bound(weights, most_ms, so_far(links, weights), to_go(links, weights))
        for weights in (FASTEST, Weights(slope, 1.0))
    )
    lower = float(dual.go[0, -1]) - slope * most_ms
    # A hasty search first: a better plan at hand rules out most of what a thorough one looks at.
    for most in (HASTY if effort is None else min(HASTY, effort), effort):
        bounds = (latency, replace(dual, limit=best.loss + slope * most_ms))
        found, error = _search(links, bounds, most_ms, most)
        if found is not None and (not error or (found.loss, found.ms) < (best.loss, best.ms)):
            best = found
        if not error:
            break
    return best, max(min(float(error), best.loss - lower), 0.0)


def _multiplier(links: Chain, budget: int, beyond: Path, within: Path) -> tuple[float, Path]:
    """Return the multiplier of the budget, and the best plan within it that was met on the way."""
    slope, best = 0.0, within
    for _ in range(50):
        slope = max(within.loss - beyond.loss, 0) / (beyond.ms - within.ms)
        weights = Weights(slope, 1.0)
        plan = shortest(links, weights)
        assert plan is not None
        below = weights.of(beyond) - weights.of(plan)
        if plan.ms <= budget:
            best = min(best, plan, key=lambda p: p.loss)
        if below <= 1e-12 * weights.of(beyond):
            break
        within, beyond = (plan, beyond) if plan.ms <= budget else (within, plan)
    return slope, best


def _search(
    links: Chain, bounds: tuple[Bound, ...], budget: int, most: int | None
) -> tuple[Path | None, int]:
    """Return the best path within the bounds, and how many quanta of loss trimming may have cost.

    Args:
        most: labels to hold behind a block; None: all, which is exact.
    """
    zero = np.zeros(1, np.int64)
    labels = Labels(zero + len(links.final) - 1, zero, zero, zero, zero, zero, zero)
    history, error = [], 0
    for i, edges in enumerate(links.blocks):
        for bound in bounds:
            edges = edges.take(bound.admits_edges(i, edges))
        labels = _next(i, edges, labels, bounds)
        if most is not None and len(labels.at) > most:
            labels, lost = _trimmed(labels, most)
            error += lost
        history.append(labels)
    ends = np.flatnonzero(links.final[labels.at] & (labels.ms <= budget))
    if not len(ends):
        return None, error
    last = labels.take(ends)
    row = int(ends[np.lexsort((last.steps, -last.tokens, last.ms, last.loss))[0]])
    ms, loss, steps = int(labels.ms[row]), int(labels.loss[row]), []
    for labels in reversed(history):
        steps.append((int(labels.at[row]), int(labels.site[row])))
        row = int(labels.parent[row])
    return Path(ms, loss, tuple(reversed(steps))), error


def _next(i: int, edges: Edges, labels: Labels, bounds: tuple[Bound, ...]) -> Labels:
    """Return every label behind block i that the bounds let through and no other dominates."""
    # Every label with every edge that leaves its count; where those of a count begin.
    begins, ends = (np.searchsorted(edges.before, labels.at, side) for side in ("left", "right"))
    fan = ends - begins
    parent = np.repeat(np.arange(len(fan)), fan)
    taken = edges.take(np.arange(len(parent)) + np.repeat(begins - np.cumsum(fan) + fan, fan))
    came = labels.take(parent)
    new = Labels(
        taken.after,
        came.ms + taken.ms,
        came.loss + taken.loss,
        came.tokens + taken.tokens,
        came.steps + (taken.site != STAY),
        taken.site,
        parent,
    )
    for bound in bounds:
        new = new.take(bound.admits(i, new.at, bound.weights.each(new.ms, new.loss)))
    # The Pareto frontier of each count, by count and then by latency.
    new = new.take(np.lexsort((new.site, new.steps, -new.tokens, new.loss, new.ms, new.at)))
    if not len(new.at):
        return new
    # A running minimum over all counts at once: each count's values lie below those before it.
    key = new.loss - new.at * (int(new.loss.max()) + 1)
    better = np.ones(len(key), bool)
    better[1:] = key[1:] < np.minimum.accumulate(key)[:-1]
    return new.take(better)


def _trimmed(labels: Labels, most: int) -> tuple[Labels, int]:
    """Return one label a bucket of losses, and the most that this lost. Takes labels in order."""
    width = 1
    while True:
        bucket = labels.loss // width
        # By count, latency rises and loss falls: buckets are runs, and the first is the fastest.
        new = np.ones(len(bucket), bool)
        new[1:] = (labels.at[1:] != labels.at[:-1]) | (bucket[1:] != bucket[:-1])
        if new.sum() <= most or not np.any(bucket):
            break
        width *= 2
    kept = np.flatnonzero(new)
    lost = labels.loss[kept][np.cumsum(new) - 1] - labels.loss
    return labels.take(kept), int(lost.max())
