"""The plan of least loss within a latency.

minimise    loss
over        counts n_0 ≥ n_1 ≥ … at the sites, every step within the limits, one a block
subject to  latency ≤ B, tokens that leave within bounds

First the dual: for any μ ≥ 0, the least of loss + μ·(latency − B) over all plans is at most the
least loss. The best μ is found along the lower hull of (latency, loss) by Handler and Zang's method
(Networks 10, 1980), which also meets a good plan. Then label setting, site by site: a label is a
partial plan, and whatever cannot keep to B, or cannot be as good as the plan at hand by the dual,
is omitted. Among labels of one state, a dominates b if it is no worse in latency and loss, and,
where both are equal, carries more tokens, or as many in no more steps. All four add up along a
plan, so that whatever completes b completes a as well or better: to omit b is exact.

Where more labels remain than `EFFORT`, they are trimmed: losses are cut into buckets of one width,
and of each state's labels in a bucket the fastest stays, so that the budget holds all the same.
`Plan.gap` says how much that may have cost: the lesser of the widths trimmed and of the distance to
the dual.

Among plans with the same loss: the less latency, then the more tokens carried, then the fewer
steps. Equal means to 2⁻³⁸ of the largest sum (`chain`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.chain import (
    BITS,
    FASTEST,
    LEAST_LOSS,
    Chain,
    Ints,
    Labels,
    Limits,
    Mask,
    Path,
    Weights,
    chain,
    shortest,
    so_far,
    take,
    to_go,
)
from tcompile.planning.optimise.tables import Floats, Plan, Tables, flattened, plan_of

#: Labels held behind a site: one to two seconds at most for 48 blocks and 200 counts,
#: where 10,000 proved every plan tried the best, in up to three.
EFFORT = 3000
#: Labels of the first search, which only looks for a good plan.
HASTY = 200


@dataclass(frozen=True, eq=False)
class Bound:
    """A limit that every plan worth looking at keeps to: weighted cost ≤ limit.

    Attributes:
        past, go: of `so_far` and `to_go`.
    """

    weights: Weights
    limit: float
    past: Floats
    go: Floats

    def admits(self, i: int, after: Ints, cost: Floats) -> Mask:
        """Return whether plans of such weighted costs behind site i can keep to the limit."""
        rounding = 1e-11 * (self.weights.ms + self.weights.loss) * 2.0**BITS
        return np.asarray(cost + self.go[i + 1, after] <= self.limit + rounding)


def solve(
    tables: Tables, latency_ms: float, limits: Limits | None = None, *, eps: float = 0.0
) -> Plan:
    """Return the plan that loses least.

    Args:
        latency_ms: the budget; infinite: any.
        eps: latencies of a plateau that differ by no more than this share count as equal, as the
            highest of them, so that a plan has all the tokens that the plateau gives away. The
            plan's latency is that of the tables, and no higher than the budget.

    Raises:
        UsageError: no plan keeps to the limits and the budget; says what the fastest one takes.
    """
    links = chain(flattened(tables, eps) if eps > 0 else tables, limits or Limits())
    fastest, budget = shortest(links, FASTEST), links.budget(latency_ms)
    if fastest.ms > budget:
        raise UsageError(
            f"no plan takes at most {latency_ms:.4g} ms: "
            f"the fastest takes {fastest.ms * links.ms:.4g} ms",
            where="--latency",
            hint=f"ask for --latency {rounded_up(fastest.ms * links.ms)} or more",
        )
    path, gap = best_path(links, fastest, budget)
    return replace(plan_of(tables, path.counts(tables)), gap=gap * links.loss)


def rounded_up(ms: float) -> str:
    """Return the latency in three digits that is not below it, so that it can be asked for."""
    unit = 10.0 ** (math.floor(math.log10(ms)) - 2) if ms > 0 else 1.0
    return f"{math.ceil(ms / unit) * unit:.4g}"


def best_path(links: Chain, fastest: Path, budget: int) -> tuple[Path, float]:
    """Return the path of least loss within a budget in quanta, and how much less it could lose.

    Args:
        fastest: any path of least latency; it must be within the budget.
    """
    best, slope = shortest(links, LEAST_LOSS), 0.0
    if best.ms > budget:
        slope, best = _multiplier(links, budget, best, fastest)
    latency, *duals = (
        Bound(weights, budget, so_far(links, weights), to_go(links, weights))
        for weights in (FASTEST, *(Weights(each, 1.0) for each in sorted({0.0, slope})))
    )
    lower = max(float(b.go[0, links.start]) - b.weights.ms * budget for b in duals)
    # A hasty search first: a better plan at hand rules out most of what a thorough one looks at.
    for most in (HASTY, EFFORT):
        good = [replace(b, limit=best.loss + b.weights.ms * budget) for b in duals]
        found, error = _search(links, (latency, *good), budget, most)
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
        below = weights.of(beyond) - weights.of(plan)
        if plan.ms <= budget:
            best = min(best, plan, key=lambda p: p.loss)
        if below <= 1e-12 * weights.of(beyond):
            break
        within, beyond = (plan, beyond) if plan.ms <= budget else (within, plan)
    return slope, best


def _search(
    links: Chain, bounds: tuple[Bound, ...], budget: int, most: int
) -> tuple[Path | None, int]:
    """Return the best path within the bounds, and how many quanta of loss trimming may have cost.

    Args:
        most: labels to hold behind a site.
    """
    zero = np.zeros(1, np.int64)
    labels = Labels(zero + links.start, zero, zero, zero, zero, zero)
    history, error = [], 0
    for i in range(len(links.sites)):
        labels = _next(links, i, labels, bounds)
        if len(labels.at) > most:
            labels, lost = _trimmed(labels, most)
            error += lost
        history.append(labels)
    last = _run(links, -1, labels)
    ends = np.flatnonzero(links.final[last.at] & (last.ms <= budget))
    if not len(ends):
        return None, error
    end = take(last, ends)
    row = int(ends[np.lexsort((end.steps, -end.tokens, end.ms, end.loss))[0]])
    ms, loss, states = int(last.ms[row]), int(last.loss[row]), []
    for labels in reversed(history):
        states.append(int(labels.at[row]))
        row = int(labels.parent[row])
    return Path(ms, loss, tuple(reversed(states))), error


def _run(links: Chain, i: int, labels: Labels) -> Labels:
    """Return the labels after the parts in front of site i."""
    ms, tokens = labels.ms + links.run[i, labels.at], labels.tokens + links.carried[i, labels.at]
    return replace(labels, ms=ms, tokens=tokens)


def _next(links: Chain, i: int, labels: Labels, bounds: tuple[Bound, ...]) -> Labels:
    """Return every label behind site i that the bounds admit and no other dominates."""
    edges, labels = links.sites[i], _run(links, i, labels)
    for bound in bounds:
        # Edges that some plan within the limit takes.
        cost = bound.past[i, edges.before] + bound.weights.of(edges)
        edges = take(edges, bound.admits(i, edges.after, cost))
    # Every label with every edge that leaves its state; where those of a state begin.
    begins, ends = (np.searchsorted(edges.before, labels.at, side) for side in ("left", "right"))
    fan = ends - begins
    parent = np.repeat(np.arange(len(fan)), fan)
    taken = take(edges, np.arange(len(parent)) + np.repeat(begins - np.cumsum(fan) + fan, fan))
    came = take(labels, parent)
    new = Labels(
        taken.after,
        came.ms + taken.ms,
        came.loss + taken.loss,
        came.tokens,
        came.steps + taken.step,
        parent,
    )
    fits = np.ones(len(parent), bool)
    for bound in bounds:
        fits &= bound.admits(i, new.at, bound.weights.of(new))
    new, step = take(new, fits), taken.step[fits]
    # The Pareto frontier of each state, by state and then by latency; of equals, to stay is first.
    new = take(new, np.lexsort((step, new.steps, -new.tokens, new.loss, new.ms, new.at)))
    if not len(new.at):
        return new
    # A running minimum over all states at once: each state's values lie below those before it.
    key = new.loss - new.at * (int(new.loss.max()) + 1)
    better = np.ones(len(key), bool)
    better[1:] = key[1:] < np.minimum.accumulate(key)[:-1]
    return take(new, better)


def _trimmed(labels: Labels, most: int) -> tuple[Labels, int]:
    """Return one label a bucket of losses, and the most that this lost. Takes labels in order."""
    width = 1
    while True:
        bucket = labels.loss // width
        # By state, latency rises and loss falls: buckets are runs, and the first is the fastest.
        new = np.ones(len(bucket), bool)
        new[1:] = (labels.at[1:] != labels.at[:-1]) | (bucket[1:] != bucket[:-1])
        if new.sum() <= most or not np.any(bucket):
            break
        width *= 2
    kept = np.flatnonzero(new)
    lost = labels.loss[kept][np.cumsum(new) - 1] - labels.loss
    return take(labels, kept), int(lost.max())


def front(tables: Tables, limits: Limits | None = None, *, points: int = 60) -> tuple[Plan, ...]:
    """Return plans on the lower convex hull of latency and loss, by rising latency.

    No other plan beats one of them in both, and each is the best for some λ of latency + λ · loss.

    Args:
        points: at most: O(S·G²) each, some 20 ms for 48 blocks and 200 counts.

    Raises:
        UsageError: no allowed steps end in a count that was asked for.
    """
    links = chain(tables, limits or Limits())
    best: list[Path] = []
    for path in sorted(_hull(links, points), key=lambda p: (p.ms, p.loss)):
        if not best or path.loss < best[-1].loss:
            best.append(path)
    return tuple(plan_of(tables, path.counts(tables)) for path in best)


def _hull(links: Chain, points: int) -> list[Path]:
    """Return plans on the hull: between two, the one that lies farthest below their line."""
    fastest = shortest(links, FASTEST)
    ends = [best_path(links, fastest, most)[0] for most in (fastest.ms, links.budget(math.inf))]
    found, pending = list(ends), [(ends[0], ends[1])]
    while pending and len(found) < points:
        # The widest gap first, so that few points show the whole of it.
        pending.sort(key=lambda pair: (pair[1].ms - pair[0].ms) * (pair[0].loss - pair[1].loss))
        fast, good = pending.pop()
        if good.ms <= fast.ms or fast.loss <= good.loss:
            continue
        rise, run = fast.loss - good.loss, good.ms - fast.ms
        weights = Weights(rise / (rise + run), run / (rise + run))
        between = shortest(links, weights)
        if weights.of(between) < weights.of(fast) * (1 - 1e-9) and fast.ms <= between.ms <= good.ms:
            found.append(between)
            pending += [(fast, between), (between, good)]
    return found
