"""The Pareto front of latency and loss, for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.bounds import bound
from tcompile.planning.optimise.chain import Chain, chain
from tcompile.planning.optimise.labels import search
from tcompile.planning.optimise.limits import Limits
from tcompile.planning.optimise.paths import Path, Weights, shortest
from tcompile.planning.optimise.plan import Plan, plan_of
from tcompile.planning.optimise.solver import EFFORT, Goal, best_path
from tcompile.planning.optimise.tables import Tables


@dataclass(frozen=True)
class Front:
    """Plans that no other beats in both latency and loss, by rising latency.

    Attributes:
        complete: whether these are all of them; otherwise those on the lower convex hull, which
            are the best for some λ of latency + λ · loss.
    """

    plans: tuple[Plan, ...]
    complete: bool


def front(
    tables: Tables, limits: Limits | None = None, *, points: int = 60, exact: bool = False
) -> Front:
    """The front, as of few steps and counts, or its lower convex hull.

    Args:
        points: of the hull, at most: O(S·G²) each, some 20 ms for 48 blocks and 200 counts.
        exact: all of the front, which may take long where it has many points.

    Raises:
        UsageError: no allowed steps end in a count that was asked for.
    """
    links = chain(tables, limits or Limits())
    found = _all(links) if exact else _hull(links, points)
    if not found:
        raise UsageError(
            "no allowed steps end in a token count that was asked for",
            where="plan",
            hint="ask for another count, or loosen the limits",
        )
    found = _sweep(found)
    plans = (plan_of(tables, [tables.counts[i] for i in path.at]) for path in found)
    return Front(tuple(plans), exact)


def _all(links: Chain) -> list[Path]:
    reach = bound(links, Weights(1.0, 0.0), 2.0**60)  # Lets all through that can end.
    found = search(links, links.edges, (reach,), "loss", None)
    labels = found.labels
    order = np.lexsort((labels.steps, -labels.tokens, labels.loss, labels.ms))
    return [found.path(int(i)) for i in order]


def _hull(links: Chain, points: int) -> list[Path]:
    """Plans on the lower hull: between two of them, whatever lies farthest below their line."""
    ms, loss = (best_path(links, goal, EFFORT)[0] for goal in (Goal("latency"), Goal("loss")))
    found, pending = [ms, loss], [(ms, loss)]
    while pending and len(found) < points:
        # The widest gap first, so that few points show the whole of it.
        pending.sort(key=lambda pair: (pair[1].ms - pair[0].ms) * (pair[0].loss - pair[1].loss))
        fast, good = pending.pop()
        if good.ms <= fast.ms or fast.loss <= good.loss:
            continue
        weights = Weights(float(fast.loss - good.loss), float(good.ms - fast.ms))
        weights = Weights(
            weights.ms / (weights.ms + weights.loss), weights.loss / (weights.ms + weights.loss)
        )
        between = shortest(links, weights)
        assert between is not None
        if weights.of(between) < weights.of(fast) * (1 - 1e-9) and fast.ms <= between.ms <= good.ms:
            found.append(between)
            pending += [(fast, between), (between, good)]
    return found


def _sweep(paths: list[Path]) -> list[Path]:
    """Those that no other beats, by rising latency; the first of equals."""
    best: list[Path] = []
    for path in sorted(paths, key=lambda p: (p.ms, p.loss)):
        if not best or path.loss < best[-1].loss:
            best.append(path)
    return best
