"""Plans: steps, what they cost and lose, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import fsum

from tcompile.core.site import SiteName
from tcompile.planning.optimise.tables import Tables


@dataclass(frozen=True)
class Step:
    """Tokens before and after, prefix included; ms of the reducer, and the loss."""

    site: SiteName
    before: int
    after: int
    ms: float
    loss: float


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

    Raises:
        UsageError: a count that is not on the grid.
    """
    places = {site.place(tables.blocks): i for i, site in enumerate(tables.sites)}
    at, steps = len(tables.counts) - 1, []
    costs = [tables.stem_ms]
    carried: tuple[list[int], list[int]] = ([], [])
    for block, half in product(range(tables.blocks), range(3)):
        if half < 2:
            carried[half].append(tables.counts[at])
            costs.append(float((tables.attn_ms, tables.mlp_ms)[half][block, at]))
        site = places.get((block, half))
        to = at if site is None else tables.index(counts[site])
        if site is not None and to != at:
            ms, loss = tables.reducer_ms[site][at, to], tables.loss[site][at, to]
            name, before, after = tables.sites[site].name, tables.counts[at], tables.counts[to]
            steps.append(Step(name, before, after, float(ms), float(loss)))
        at = to
    costs += [float(tables.head_ms[at]), *(step.ms for step in steps)]
    return Plan(
        tuple(steps),
        tuple(carried[0]),
        tuple(carried[1]),
        tables.counts[at],
        fsum(costs),
        fsum(step.loss for step in steps),
        tables.dense_ms,
    )


def dense_plan(tables: Tables) -> Plan:
    """Return the plan without a step."""
    return plan_of(tables, [tables.tokens] * len(tables.sites))
