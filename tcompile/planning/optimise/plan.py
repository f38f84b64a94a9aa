"""What the optimiser answers: steps, what they cost and lose, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from tcompile.core.site import SiteName
from tcompile.planning.optimise.tables import Tables


@dataclass(frozen=True)
class Step:
    """So many tokens come, so many stay, prefix included; ms of the reducer, and the loss."""

    site: SiteName
    before: int
    after: int
    ms: float
    loss: float


@dataclass(frozen=True)
class Plan:
    """Which steps are taken; none is the dense model.

    Attributes:
        attention, mlp: tokens in each block's halves, prefix included.
        final: tokens that leave the model.
        latency_ms, loss: of the whole model.
        dense_ms: what the dense model takes.
        gap: how much better the objective could be at most: 0 where the plan is proven best.
        objective: what was minimised, its unit that of latency, loss or latency + λ·loss.
    """

    steps: tuple[Step, ...]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    final: int
    latency_ms: float
    loss: float
    dense_ms: float
    gap: float = 0.0
    objective: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Site → tokens that stay, prefix included."""
        return {step.site: step.after for step in self.steps}

    @property
    def tokens(self) -> int:
        """Carried, summed over all parts: both halves of each block, and the head."""
        return sum(self.attention) + sum(self.mlp) + self.final

    @property
    def speedup(self) -> float:
        """Latency of dense over that of the plan; 1 where nothing takes time."""
        return self.dense_ms / self.latency_ms if self.latency_ms > 0 else 1.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values; latencies are predictions, and whoever made the tables says from what."""
        return {
            "steps": [vars(step).copy() for step in self.steps],
            "tokens_per_block": [
                {"block": i, "attention": a, "mlp": m}
                for i, (a, m) in enumerate(zip(self.attention, self.mlp, strict=True))
            ],
            "final": self.final,
            "latency_ms": self.latency_ms,
            "loss": self.loss,
            "dense_ms": self.dense_ms,
            "gap": self.gap,
        }


def plan_of(tables: Tables, counts: Sequence[int]) -> Plan:
    """The plan that has so many tokens after each of the tables' sites.

    latency = stem + Σ_l attn_l(n) + mlp_l(n) + head(n) + Σ_steps reducer(n_in → n_out)

    Args:
        counts: by site, in order, on the grid; equal to the one before where no step is taken.

    Raises:
        UsageError: a count that is not on the grid.
    """
    places = {site.place(tables.blocks): i for i, site in enumerate(tables.sites)}
    at, steps = len(tables.counts) - 1, []
    costs = [tables.stem_ms]
    halves: tuple[list[int], list[int]] = ([], [])

    def reach(block: int, half: int) -> None:
        nonlocal at
        number = places.get((block, half))
        if number is None:
            return
        to = tables.index(counts[number])
        if to != at:
            ms, loss = tables.reducer_ms[number][at, to], tables.loss[number][at, to]
            steps.append(
                Step(
                    tables.sites[number].name,
                    tables.counts[at],
                    tables.counts[to],
                    float(ms),
                    float(loss),
                )
            )
        at = to

    for block in range(tables.blocks):
        for half, table in enumerate((tables.attn_ms, tables.mlp_ms)):
            halves[half].append(tables.counts[at])
            costs.append(float(table[block, at]))
            reach(block, half)
    reach(tables.blocks - 1, 2)
    costs += [float(tables.head_ms[at]), *(step.ms for step in steps)]
    return Plan(
        tuple(steps),
        tuple(halves[0]),
        tuple(halves[1]),
        tables.counts[at],
        fsum(costs),
        fsum(step.loss for step in steps),
        tables.dense_ms,
    )


def dense_plan(tables: Tables) -> Plan:
    """No step at all."""
    return plan_of(tables, [tables.tokens] * len(tables.sites))
