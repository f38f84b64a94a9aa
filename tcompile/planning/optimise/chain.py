"""The tables as a chain of blocks, in whole numbers, and shortest paths through it.

A block lets at most one step through, at one of its sites. So what runs in a block is an edge from
the token count that enters it to the count that leaves it, and a plan is a path along the blocks.

Latencies and losses are rounded to multiples of a power of two that is at most 2⁻³⁸ of the largest
sum, so that sums do not depend on their order, ties are ties, and dominance is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import frexp

import numpy as np
import numpy.typing as npt

from tcompile.methods.site_rule import SiteRule
from tcompile.planning.optimise.tables import Floats, Tables

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Sums stay below 2 to this.
BITS = 40
#: The site of an edge along which all tokens stay.
STAY = -1


@dataclass(frozen=True)
class Limits:
    """Constraints on all steps; those of a single site are its `SiteRule`.

    Attributes:
        topk: the most patches that may stay after a step, because TopK takes no larger K
            (3840 in TensorRT); None: any.
        final_least, final_most: tokens that leave the model, prefix included.
    """

    topk: int | None = None
    final_least: int | None = None
    final_most: int | None = None


@dataclass(frozen=True, eq=False)
class Edges:
    """Ways through a block, by the count that enters it, as parallel arrays.

    Attributes:
        before, after: counts, by number on the grid.
        site: number of the site of the step, or `STAY`.
        ms, loss: in quanta.
        tokens: carried, summed over the parts that run.
    """

    before: Ints
    after: Ints
    site: Ints
    ms: Ints
    loss: Ints
    tokens: Ints

    def take(self, which: Ints | Mask) -> Edges:
        """Return some of them."""
        return Edges(*(array[which] for array in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Chain:
    """A model as a chain.

    Attributes:
        blocks: the edges of each.
        final: [G], whether so many tokens may leave the model.
        ms, loss: the quanta.
    """

    blocks: tuple[Edges, ...]
    final: Mask
    ms: float
    loss: float

    def budget(self, latency_ms: float) -> int:
        """Return a latency in quanta, up to the rounding of every part."""
        return int(min(latency_ms / self.ms, 2.0**BITS)) + 4 * len(self.blocks) + 2


@dataclass(frozen=True)
class Path:
    """A plan in quanta: the count behind each block, by number, and the site of its step."""

    ms: int
    loss: int
    steps: tuple[tuple[int, int], ...]

    def counts(self, tables: Tables) -> list[int]:
        """Return the tokens behind each site of the tables."""
        found, at = [], len(tables.counts) - 1
        for number, site in enumerate(tables.sites):
            after, where = self.steps[site.place(tables.blocks)[0]]
            at = after if number == where else at
            found.append(tables.counts[at])
        return found


@dataclass(frozen=True)
class Weights:
    """How much a quantum of latency and one of loss weigh."""

    ms: float
    loss: float

    def of(self, path: Path) -> float:
        """Return the weighted cost of a path."""
        return self.ms * path.ms + self.loss * path.loss

    def each(self, ms: Ints, loss: Ints) -> Floats:
        """Return the weighted costs of edges or partial plans."""
        return self.ms * ms + self.loss * loss


FASTEST, LEAST_LOSS = Weights(1.0, 0.0), Weights(0.0, 1.0)


def chain(tables: Tables, limits: Limits) -> Chain:
    """Return the tables under the limits."""
    n, blocks = np.asarray(tables.counts, np.int64), tables.blocks
    masks = [_allowed(tables, site, limits) for site in tables.sites]
    reducers, losses = (
        [np.where(mask, cost, 0.0) for mask, cost in zip(masks, costs, strict=True)]
        for costs in (tables.reducer_ms, tables.loss)
    )
    parts = (np.asarray(tables.stem_ms), tables.attn_ms, tables.mlp_ms, tables.head_ms)
    ms = _quantum([*(row for part in parts for row in np.atleast_2d(part)), *reducers])
    loss = _quantum(losses)
    stem, attn, mlp, head = (_whole(part, ms) for part in parts)

    def edges(block: int, site: int) -> Edges:
        """Return the edges of a block with a step at a site, or with none."""
        before, after = np.nonzero(np.eye(len(n)) if site == STAY else masks[site])
        between = site == STAY or tables.sites[site].place(blocks)[1] == 0
        second = after if between else before  # What the MLP carries.
        cost, tokens = attn[block][before] + mlp[block][second], n[before] + n[second]
        lost = np.zeros_like(cost)
        if block == 0:
            cost += stem
        if block == blocks - 1:
            cost += head[after]
            tokens += n[after]
        if site != STAY:
            cost += _whole(reducers[site][before, after], ms)
            lost += _whole(losses[site][before, after], loss)
        return Edges(before, after, np.full_like(before, site), cost, lost, tokens)

    def through(block: int) -> Edges:
        here = [i for i, site in enumerate(tables.sites) if site.place(blocks)[0] == block]
        # The later of two sites comes first: a shortest path takes the first of equal edges.
        found = [vars(edges(block, site)).values() for site in (STAY, *reversed(here))]
        both = Edges(*map(np.concatenate, zip(*found, strict=True)))
        return both.take(np.argsort(both.before, kind="stable"))

    least = n[0] if limits.final_least is None else limits.final_least
    most = n[-1] if limits.final_most is None else limits.final_most
    final = np.asarray((n >= least) & (n <= most))
    return Chain(tuple(map(through, range(blocks))), final, ms, loss)


def _allowed(tables: Tables, rule: SiteRule, limits: Limits) -> Mask:
    """Return [G, G]: whether the step from counts[i] to counts[j] is allowed at a site."""
    n = np.asarray(tables.counts)
    patches = n - tables.prefix
    target = (n >= rule.least) & (patches % rule.granularity == 0)
    if limits.topk is not None:
        target &= patches <= limits.topk
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
    """Return [L + 1, G], the least weighted cost from the count in front of a block to the end."""
    found = np.empty((len(chain.blocks) + 1, len(chain.final)))
    found[-1] = np.where(chain.final, 0.0, np.inf)
    for i, edges in reversed(list(enumerate(chain.blocks))):
        cost = weights.each(edges.ms, edges.loss) + found[i + 1, edges.after]
        # Every count has an edge: all its tokens may stay.
        begins = np.searchsorted(edges.before, np.arange(len(chain.final)))
        found[i] = np.minimum.reduceat(cost, begins)
    return found


def so_far(chain: Chain, weights: Weights) -> Floats:
    """Return [L, G], the least weighted cost from the start to the count in front of a block."""
    found = np.full((len(chain.blocks), len(chain.final)), np.inf)
    found[0, -1] = 0.0
    for i, edges in enumerate(chain.blocks[:-1]):
        cost = found[i, edges.before] + weights.each(edges.ms, edges.loss)
        np.minimum.at(found[i + 1], edges.after, cost)
    return found


def shortest(chain: Chain, weights: Weights) -> Path | None:
    """Return a plan of least weighted cost, or None if no plan ends in an allowed count."""
    go = to_go(chain, weights)
    if not np.isfinite(go[0, -1]):
        return None
    at, ms, loss, steps = len(chain.final) - 1, 0, 0, []
    for i, edges in enumerate(chain.blocks):
        out = edges.take(np.flatnonzero(edges.before == at))
        best = int(np.argmin(weights.each(out.ms, out.loss) + go[i + 1, out.after]))
        at = int(out.after[best])
        ms, loss = ms + int(out.ms[best]), loss + int(out.loss[best])
        steps.append((at, int(out.site[best])))
    return Path(ms, loss, tuple(steps))
