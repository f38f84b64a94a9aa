"""The tables as a chain of sites, in whole numbers.

Latencies and losses are rounded to multiples of a power of two that is at most 2⁻³⁸ of the largest
sum, so that sums do not depend on their order, ties are ties, and dominance is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

import numpy as np
import numpy.typing as npt

from tcompile.planning.optimise.limits import Limits, Mask, allowed, final_allowed
from tcompile.planning.optimise.tables import Floats, Tables

Ints = npt.NDArray[np.int64]

#: Sums stay below 2 to this.
BITS = 40


@dataclass(frozen=True, eq=False)
class Chain:
    """S sites, and what runs before each and after the last, in quanta.

    Attributes:
        counts: [G].
        before: [S + 1, G], latency of what runs between sites; the last row follows the last site.
        parts: [S + 1], how many parts that is: each carries its tokens.
        edges: [S, G, G], whether a step is allowed.
        barred: [S, G, G], infinite where it is not, else 0.
        step_ms, step_loss: [S, G, G].
        carry: [S], whether a step at this site forbids one at the next.
        final: [G], whether so many tokens may leave the model.
        max_steps: or None.
        ms, loss: the quanta.
    """

    counts: Ints
    before: Ints
    parts: Ints
    edges: Mask
    barred: Floats
    step_ms: Ints
    step_loss: Ints
    carry: tuple[bool, ...]
    final: Mask
    max_steps: int | None
    ms: float
    loss: float

    @property
    def sites(self) -> int:
        return len(self.carry)

    @property
    def shape(self) -> tuple[int, int, int]:
        """States at a site: steps so far, whether one is forbidden here, count."""
        levels = 1 if self.max_steps is None else min(self.max_steps, self.sites) + 1
        return levels, 2 if any(self.carry) else 1, len(self.counts)

    def latency_budget(self, budget: float) -> int:
        """In quanta, up to the rounding of every part."""
        return int(min(budget / self.ms, 2.0**BITS)) + 2 * self.sites + 2

    def loss_budget(self, budget: float) -> int:
        """In quanta, up to the rounding of every step."""
        return int(min(budget / self.loss, 2.0**BITS)) + self.sites + 1


def chain(tables: Tables, limits: Limits) -> Chain:
    """The tables under the limits."""
    size, blocks = len(tables.counts), tables.blocks
    rows = [
        (place, half[place[0]])
        for b in range(blocks)
        for place, half in (((b, -1), tables.attn_ms), ((b, 0), tables.mlp_ms))
    ]
    # A part runs before the first site that is not before it: attention of b before (b, 0), …
    places = [site.place(blocks) for site in tables.sites]
    before = np.zeros((len(places) + 1, size))
    parts = np.zeros(len(places) + 1, np.int64)
    for (block, half), cost in rows:
        at = next((i for i, p in enumerate(places) if p > (block, half)), len(places))
        before[at] += cost
        parts[at] += 1
    before[0] += tables.stem_ms
    before[-1] += tables.head_ms
    parts[-1] += 1
    edges = np.zeros((len(places), size, size), bool)
    for i in range(len(places)):
        edges[i] = allowed(tables, i, limits)
    carry = tuple(
        limits.once_per_block and i + 1 < len(places) and places[i][0] == places[i + 1][0]
        for i in range(len(places))
    )
    reducers, losses = (
        [np.where(e, t, 0.0) for e, t in zip(edges, steps, strict=True)]
        for steps in (tables.reducer_ms, tables.loss)
    )
    step_ms, ms = _whole([before, *reducers])
    step_loss, loss = _whole([np.zeros((1, size)), *losses])
    return Chain(
        np.asarray(tables.counts, np.int64),
        step_ms[0],
        parts,
        edges,
        np.where(edges, 0.0, np.inf),
        _stack(step_ms[1:], size),
        _stack(step_loss[1:], size),
        carry,
        final_allowed(tables, limits),
        limits.max_steps,
        ms,
        loss,
    )


def _stack(steps: list[Ints], size: int) -> Ints:
    return np.stack(steps) if steps else np.zeros((0, size, size), np.int64)


def _whole(costs: list[Floats]) -> tuple[list[Ints], float]:
    """Costs in quanta, and the quantum: of the rows before sites, and of the steps at each."""
    most = float(costs[0].max(axis=1).sum() + sum(c.max() for c in costs[1:]))
    quantum = 2.0 ** (frexp(most)[1] - BITS + 1) if most > 0 else 1.0
    return [np.rint(c / quantum).astype(np.int64) for c in costs], quantum
