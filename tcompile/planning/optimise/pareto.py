"""The Pareto front of latency and loss: its lower convex hull."""

from __future__ import annotations

from tcompile.planning.optimise.chain import Chain, Limits, Path, Weights, chain, shortest
from tcompile.planning.optimise.plan import Plan, plan_of
from tcompile.planning.optimise.solver import best_path, fastest_path
from tcompile.planning.optimise.tables import Tables


def front(tables: Tables, limits: Limits | None = None, *, points: int = 60) -> tuple[Plan, ...]:
    """Return plans on the lower convex hull of latency and loss, by rising latency.

    No other plan beats one of them in both, and each is the best for some λ of latency + λ · loss.

    Args:
        points: at most: O(L·G²) each, some 20 ms for 48 blocks and 200 counts.

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
    fastest = fastest_path(links)
    ends = [best_path(links, fastest, budget)[0] for budget in (fastest.ms, None)]
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
        assert between is not None
        if weights.of(between) < weights.of(fast) * (1 - 1e-9) and fast.ms <= between.ms <= good.ms:
            found.append(between)
            pending += [(fast, between), (between, good)]
    return found
