"""Shortest paths through the chain for u·latency + v·loss: O(S·G²) each, no labels.

A state is (steps so far, whether a step is forbidden here, count); see `Chain.shape`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.planning.optimise.chain import Chain
from tcompile.planning.optimise.tables import Floats


@dataclass(frozen=True)
class Path:
    """A plan in quanta: where it stands after each site, as an index of counts."""

    ms: int
    loss: int
    at: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """What a quantum of latency and one of loss weigh."""

    ms: float
    loss: float

    def of(self, path: Path) -> float:
        return self.ms * path.ms + self.loss * path.loss


def edge_costs(chain: Chain, site: int, weights: Weights) -> Floats:
    """[G, G]: of every step at a site; infinite where it is not allowed."""
    cost: Floats = chain.barred[site].copy()
    if weights.ms:
        cost += weights.ms * chain.step_ms[site]
    if weights.loss:
        cost += weights.loss * chain.step_loss[site]
    return cost


def after_step(chain: Chain, site: int, values: Floats) -> Floats:
    """[K, G]: what a step at a site leads to, of `values` [K, F, G] at the next one."""
    there = values[:, int(chain.carry[site])]
    if chain.max_steps is None:
        return there
    beyond = np.full((1, there.shape[1]), np.inf)
    return np.concatenate([there[1:], beyond])


def to_go(chain: Chain, weights: Weights) -> Floats:
    """[S + 1, K, F, G]: the least cost from a site on, what runs before it included."""
    found = np.empty((chain.sites + 1, *chain.shape))
    found[-1] = np.where(chain.final, weights.ms * chain.before[-1], np.inf)
    for i in reversed(range(chain.sites)):
        there = found[i + 1]
        stay = there if chain.carry[i] else there[:, :1]
        found[i] = stay
        cost = edge_costs(chain, i, weights)
        for level, target in enumerate(after_step(chain, i, there)):
            np.minimum(found[i, level, 0], (cost + target).min(axis=1), out=found[i, level, 0])
        found[i] += weights.ms * chain.before[i]
    return found


def so_far(chain: Chain, weights: Weights) -> Floats:
    """[S + 1, K, F, G]: the least cost up to a site, what runs before it not included."""
    found = np.full((chain.sites + 1, *chain.shape), np.inf)
    found[0, 0, 0, -1] = 0
    for i in range(chain.sites):
        here = found[i] + weights.ms * chain.before[i]
        there = found[i + 1]
        if chain.carry[i]:
            there[:] = here
        else:
            there[:, 0] = here.min(axis=1)
        cost = edge_costs(chain, i, weights)
        beyond = 0 if chain.max_steps is None else 1
        for level in range(len(here) - beyond):
            goal = there[level + beyond, int(chain.carry[i])]
            np.minimum(goal, (here[level, 0][:, None] + cost).min(axis=0), out=goal)
    return found


def shortest(chain: Chain, weights: Weights, go: Floats | None = None) -> Path | None:
    """A plan of least cost, or None if no plan ends in an allowed count.

    Args:
        go: of `to_go` with the same weights, if at hand.
    """
    go = to_go(chain, weights) if go is None else go
    level, forbidden, at = 0, 0, len(chain.counts) - 1
    if not np.isfinite(go[0, 0, 0, at]):
        return None
    places = []
    for i in range(chain.sites):
        carried = int(chain.carry[i])
        stay = go[i + 1, level, forbidden * carried, at]
        target = after_step(chain, i, go[i + 1])[level]
        steps = np.where(
            chain.edges[i, at],
            weights.ms * chain.step_ms[i, at] + weights.loss * chain.step_loss[i, at] + target,
            np.inf,
        )
        best = int(np.argmin(steps))
        if not forbidden and steps[best] < stay:
            at, forbidden = best, carried
            level += chain.max_steps is not None
        else:
            forbidden *= carried
        places.append(at)
    return path_at(chain, tuple(places))


def path_at(chain: Chain, places: tuple[int, ...]) -> Path:
    """The plan that stands there after each site."""
    at, ms, loss = len(chain.counts) - 1, 0, 0
    for i, place in enumerate(places):
        ms += int(chain.before[i, at])
        if place != at:
            ms += int(chain.step_ms[i, at, place])
            loss += int(chain.step_loss[i, at, place])
        at = place
    return Path(ms + int(chain.before[-1, at]), loss, places)
