"""The optimiser's input: what every part and every step costs and loses, by token count.

Counts are whole token counts, prefix included, as they run through the model. Latencies are in ms
for one batch. Losses are in any unit that adds up over steps; both are ≥ 0.

Sums are told apart to 2⁻³⁸ of the largest one: forbid a step by `SiteRule` and `Limits`, not by a
loss of 10¹².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.core.site import SiteName
from tcompile.methods.context import SiteRule
from tcompile.profiling.plateaus import Plateau, plateaus

Floats = npt.NDArray[np.float64]
#: (site, n_in [G, 1], n_out [1, G]) → anything that broadcasts to [G, G].
StepFunction = Callable[[str, npt.NDArray[np.int64], npt.NDArray[np.int64]], Any]


@dataclass(frozen=True, eq=False)
class Tables:
    """A model on a device, by token count.

    Attributes:
        counts: G token counts, ascending, prefix included; the last is the dense model's.
        prefix: tokens that never leave.
        attn_ms, mlp_ms: [L, G], of the halves of each of L blocks.
        head_ms: [G], all that follows the blocks.
        stem_ms: all that precedes them.
        sites: the legal ones, in execution order.
        reducer_ms: by site, [G, G]: what scoring and reducing from counts[i] to counts[j] takes.
            Only i > j is read.
        loss: by site, [G, G]: what such a step loses.
    """

    counts: tuple[int, ...]
    prefix: int
    attn_ms: Floats
    mlp_ms: Floats
    head_ms: Floats
    stem_ms: float
    sites: tuple[SiteRule, ...]
    reducer_ms: tuple[Floats, ...]
    loss: tuple[Floats, ...]

    @property
    def blocks(self) -> int:
        return int(self.attn_ms.shape[0])

    @property
    def tokens(self) -> int:
        """Return the tokens of the dense model."""
        return self.counts[-1]

    @property
    def dense_ms(self) -> float:
        """Return stem + Σ_l (attn_l(N) + mlp_l(N)) + head(N)."""
        last = self.attn_ms[:, -1].sum() + self.mlp_ms[:, -1].sum() + self.head_ms[-1]
        return float(self.stem_ms + last)

    @staticmethod
    def of(
        counts: Sequence[int],
        prefix: int,
        *,
        attn_ms: npt.ArrayLike,
        mlp_ms: npt.ArrayLike,
        head_ms: npt.ArrayLike,
        stem_ms: float,
        sites: Sequence[SiteRule],
        reducer_ms: StepFunction,
        loss: StepFunction,
    ) -> Tables:
        """Make tables from functions of steps, called for each site with all pairs of counts."""
        n = np.asarray(counts, np.int64)
        size = (len(n), len(n))

        def pairs(function: StepFunction) -> tuple[Floats, ...]:
            found = (function(s.name, n[:, None], n[None, :]) for s in sites)
            return tuple(np.broadcast_to(np.asarray(f, np.float64), size) for f in found)

        return Tables(
            tuple(int(c) for c in n),
            prefix,
            np.asarray(attn_ms, np.float64),
            np.asarray(mlp_ms, np.float64),
            np.asarray(head_ms, np.float64),
            float(stem_ms),
            tuple(sites),
            pairs(reducer_ms),
            pairs(loss),
        )


@dataclass(frozen=True)
class Step:
    """Tokens before and after, prefix included; ms of the reducer, and the loss, where steps have
    one of their own."""

    site: SiteName
    before: int
    after: int
    ms: float
    loss: float | None


@dataclass(frozen=True)
class Plan:
    """The steps that are taken; without one, the dense model.

    Attributes:
        attention, mlp: tokens in each block's halves, prefix included.
        final: tokens that leave the model.
        latency_ms, loss: of the whole model.
        dense_ms: what the dense model takes.
        gap: how much less could be lost at most: 0 where the plan is proven best.
    """

    steps: tuple[Step, ...]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    final: int
    latency_ms: float
    loss: float
    dense_ms: float
    gap: float = 0.0

    @property
    def speedup(self) -> float:
        """Return the dense latency over that of the plan; 1 where nothing takes time."""
        return self.dense_ms / self.latency_ms if self.latency_ms > 0 else 1.0


def plan_of(tables: Tables, counts: Sequence[int]) -> Plan:
    """Return the plan that has so many tokens after each of the tables' sites.

    latency = stem + Σ_l attn_l(n) + mlp_l(n) + head(n) + Σ_steps reducer(n_in → n_out)

    Args:
        counts: by site, in order, on the grid; equal to the one before where no step is taken.
    """
    places = {site.place(tables.blocks): i for i, site in enumerate(tables.sites)}
    at, steps, losses = len(tables.counts) - 1, list[Step](), list[float]()
    costs = [tables.stem_ms]
    carried: tuple[list[int], list[int]] = ([], [])
    for block, half in product(range(tables.blocks), range(3)):
        if half < 2:
            carried[half].append(tables.counts[at])
            costs.append(float((tables.attn_ms, tables.mlp_ms)[half][block, at]))
        site = places.get((block, half))
        to = at if site is None else tables.counts.index(counts[site])
        if site is not None and to != at:
            ms, loss = tables.reducer_ms[site][at, to], tables.loss[site][at, to]
            name, before, after = tables.sites[site].name, tables.counts[at], tables.counts[to]
            steps.append(Step(name, before, after, float(ms), float(loss)))
            losses.append(float(loss))
        at = to
    costs += [float(tables.head_ms[at]), *(step.ms for step in steps)]
    return Plan(
        tuple(steps),
        tuple(carried[0]),
        tuple(carried[1]),
        tables.counts[at],
        fsum(costs),
        fsum(losses),
        tables.dense_ms,
    )


def dense_plan(tables: Tables) -> Plan:
    """Return the plan without a step."""
    return plan_of(tables, [tables.tokens] * len(tables.sites))


def flattened(tables: Tables, eps: float) -> Tables:
    """Raise the latencies of each half, and of the head, to the highest of their plateau.

    So that what differs by noise is equal to the optimiser, which then takes more tokens; raised,
    so that a plan takes no longer than planned. t ≤ flattened t ≤ (1 + ε)·t: a count that takes
    less time than the first of its plateau begins another, and one that takes more than ε more than
    it keeps its time.
    """
    attn, mlp = (np.array([_flat(row, eps) for row in t]) for t in (tables.attn_ms, tables.mlp_ms))
    return replace(tables, attn_ms=attn, mlp_ms=mlp, head_ms=_flat(tables.head_ms, eps))


def _flat(times: Floats, eps: float) -> Floats:
    raised: Floats = times.copy()
    first = 0
    while first < len(times):
        faster = np.flatnonzero(times[first:] < times[first])
        run = times[first : first + faster[0]] if len(faster) else times[first:]
        level = np.flatnonzero(run <= (1 + eps) * times[first])
        raised[first + level] = run[level].max()
        first += int(level[-1]) + 1
    return raised


def plateau_of(tables: Tables, plan: Plan, eps: float = 0.01) -> tuple[Plateau, ...]:
    """Return the plateau on which the count of each step of a plan lies.

    The curve is of all that runs between the step and the next one, as a function of its count.
    """
    halves = np.stack([tables.attn_ms, tables.mlp_ms], axis=1).reshape(-1, len(tables.counts))
    parts = np.concatenate([halves, tables.head_ms[None]])
    place = {s.name: s.place(tables.blocks) for s in tables.sites}
    begins = [min(2 * place[s.site][0] + place[s.site][1] + 1, len(parts) - 1) for s in plan.steps]
    found = []
    for step, (begin, end) in zip(plan.steps, pairwise([*begins, len(parts)]), strict=True):
        curve = parts[begin:end].sum(axis=0)
        found.append(next(p for p in plateaus(tables.counts, curve, eps) if step.after <= p.last))
    return tuple(found)
