"""The tables as a chain of sites, in whole numbers, and shortest paths through it.

A plan is a path: at each site an edge leads from one state to the next. A state is a token count,
by number, plus G after a step at an earlier site of the same block, which has no second one.

Latencies and losses are rounded to multiples of a power of two that is at most 2⁻³⁸ of the largest
sum, so that sums do not depend on their order, ties are ties, and dominance is exact.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import frexp
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteRule
from tcompile.passes.reduce.reducers.common import TOPK_LIMIT
from tcompile.planning.optimise.tables import Floats, Tables

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Sums stay below 2 to this.
BITS = 40


@dataclass(frozen=True)
class Limits:
    """Constraints on all steps; those of a single site are its `SiteRule`.

    Attributes:
        topk: the most patches that may stay after a step, because TensorRT's TopK takes no larger
            K.
        final_least, final_most: tokens that leave the model, prefix included.
    """

    topk: int = TOPK_LIMIT
    final_least: int = 0
    final_most: int = sys.maxsize


@dataclass(frozen=True, eq=False)
class Edges:
    """Ways past a site as parallel arrays, by the state in front of it; to stay comes first.

    Attributes:
        before, after: states.
        step: 1 for a step, 0 where all tokens stay.
        ms, loss: of the step, in quanta.
    """

    before: Ints
    after: Ints
    step: Ints
    ms: Ints
    loss: Ints


@dataclass(frozen=True, eq=False)
class Labels:
    """Partial plans as parallel arrays: the state, the sums, and the label in front of the site."""

    at: Ints
    ms: Ints
    loss: Ints
    tokens: Ints
    steps: Ints
    parent: Ints


Rows = TypeVar("Rows", Edges, Labels)


def take(rows: Rows, which: Ints | Mask) -> Rows:
    """Return some of the edges or labels."""
    return type(rows)(*(array[which] for array in vars(rows).values()))


@dataclass(frozen=True, eq=False)
class Chain:
    """A model as a chain of S sites.

    Attributes:
        sites: the edges of each.
        run: [S + 1, 2 · G], latency of the parts in front of each site and after the last one.
        carried: [S + 1, 2 · G], tokens carried, summed over these parts.
        final: [2 · G], whether so many tokens may leave the model.
        ms, loss: the quanta.
    """

    sites: tuple[Edges, ...]
    run: Ints
    carried: Ints
    final: Mask
    ms: float
    loss: float

    @property
    def start(self) -> int:
        """The state in front of the first site: all tokens."""
        return len(self.final) // 2 - 1

    def budget(self, latency_ms: float) -> int:
        """Return a latency in quanta, up to the rounding of every part; infinite: any."""
        return int(min(latency_ms / self.ms, 2.0**BITS)) + 2 * len(self.sites) + 2


@dataclass(frozen=True)
class Path:
    """A plan in quanta, and its state behind each site."""

    ms: int
    loss: int
    states: tuple[int, ...]

    def counts(self, tables: Tables) -> list[int]:
        """Return the tokens behind each site."""
        return [tables.counts[state % len(tables.counts)] for state in self.states]


@dataclass(frozen=True)
class Weights:
    """Weights of a quantum of latency and of one of loss."""

    ms: float
    loss: float

    def of(self, one: Edges | Labels | Path) -> Any:
        """Return the weighted cost of each edge or partial plan, or of a path."""
        return self.ms * one.ms + self.loss * one.loss


FASTEST, LEAST_LOSS = Weights(1.0, 0.0), Weights(0.0, 1.0)


def chain(tables: Tables, limits: Limits) -> Chain:
    """Return the tables under the limits."""
    n, size = np.asarray(tables.counts, np.int64), len(tables.counts)
    places = [site.place(tables.blocks) for site in tables.sites]
    # A part runs in front of the first site that follows it: attention of b before (b, 0), …
    run, parts = np.zeros((len(places) + 1, size)), np.zeros(len(places) + 1, np.int64)
    for block, half in product(range(tables.blocks), range(2)):
        at = bisect_right(places, (block, half - 1))
        run[at] += (tables.attn_ms, tables.mlp_ms)[half][block]
        parts[at] += 1
    run[0] += tables.stem_ms
    run[-1] += tables.head_ms
    parts[-1] += 1
    masks = [_allowed(tables, site, limits) for site in tables.sites]
    reducers, losses = (
        [np.where(mask, cost, 0.0) for mask, cost in zip(masks, costs, strict=True)]
        for costs in (tables.reducer_ms, tables.loss)
    )
    ms, loss = _quantum([*run, *reducers]), _quantum(losses)
    blocks = [block for block, _ in places]

    def edges(i: int) -> Edges:
        again = size * (i + 1 < len(places) and blocks[i] == blocks[i + 1])
        every = np.arange(size)
        came, to = np.nonzero(masks[i])
        before = np.concatenate([every, every + size, came])
        after = np.concatenate([every, every + again, to + again])
        step = np.arange(len(before)) >= 2 * size
        cost, lost = np.zeros_like(before), np.zeros_like(before)
        cost[step] = _whole(reducers[i][masks[i]], ms)
        lost[step] = _whole(losses[i][masks[i]], loss)
        found = Edges(before, after, step.astype(np.int64), cost, lost)
        return take(found, np.argsort(before, kind="stable"))

    return Chain(
        tuple(map(edges, range(len(places)))),
        np.tile(_whole(run, ms), 2),
        np.tile(parts[:, None] * n, 2),
        np.tile((n >= limits.final_least) & (n <= limits.final_most), 2),
        ms,
        loss,
    )


def _allowed(tables: Tables, rule: SiteRule, limits: Limits) -> Mask:
    """Return [G, G]: whether the step from counts[i] to counts[j] is allowed at a site."""
    n = np.asarray(tables.counts)
    patches = n - tables.prefix
    target = (n >= rule.least) & (patches % rule.granularity == 0) & (patches <= limits.topk)
    gone = n[:, None] - n[None, :]
    mask: Mask = (gone > 0) & target[None, :]
    if rule.most_dropped is not None:
        # A share such as 0.1 of 30 patches is 3, whatever its binary form makes of it.
        mask &= gone <= np.floor(rule.most_dropped * patches[:, None] + 1e-9)
    return mask


def _quantum(costs: Iterable[Floats]) -> float:
    most = sum(float(cost.max()) for cost in costs)
    return 2.0 ** (frexp(most)[1] - BITS + 1) if most > 0 else 1.0


def _whole(cost: Floats, quantum: float) -> Ints:
    return np.rint(cost / quantum).astype(np.int64)


def to_go(chain: Chain, weights: Weights) -> Floats:
    """Return [S + 1, 2 · G], the least weighted cost to the end, a site's own parts included."""
    found = np.where(chain.final, weights.ms * chain.run, np.inf)
    for i, edges in reversed(list(enumerate(chain.sites))):
        cost = weights.of(edges) + found[i + 1, edges.after]
        # Every state has an edge: all its tokens may stay.
        begins = np.searchsorted(edges.before, np.arange(len(chain.final)))
        found[i] = np.minimum.reduceat(cost, begins) + weights.ms * chain.run[i]
    return found


def so_far(chain: Chain, weights: Weights) -> Floats:
    """Return [S, 2 · G], the least weighted cost from the start to each site."""
    found = np.full(chain.run.shape, np.inf)
    found[0, chain.start] = 0.0
    for i, edges in enumerate(chain.sites):
        found[i] += weights.ms * chain.run[i]
        cost = found[i, edges.before] + weights.of(edges)
        np.minimum.at(found[i + 1], edges.after, cost)
    return found[:-1]


def shortest(chain: Chain, weights: Weights) -> Path:
    """Return a plan of least weighted cost.

    Raises:
        UsageError: no allowed steps end in a count that was asked for.
    """
    go = to_go(chain, weights)
    at, ms, loss, states = chain.start, 0, 0, []
    if not np.isfinite(go[0, at]):
        raise UsageError(
            "no allowed steps end in a token count that was asked for",
            where="plan",
            hint="ask for another count, or loosen the limits",
        )
    for i, edges in enumerate(chain.sites):
        out = take(edges, edges.before == at)
        best = int(np.argmin(weights.of(out) + go[i + 1, out.after]))
        ms += int(chain.run[i, at] + out.ms[best])
        loss += int(out.loss[best])
        at = int(out.after[best])
        states.append(at)
    return Path(ms + int(chain.run[-1, at]), loss, tuple(states))
