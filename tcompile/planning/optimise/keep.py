"""The plan that a keep ratio alone asks for."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np

from tcompile.errors import UsageError
from tcompile.planning.optimise.chain import Chain, chain
from tcompile.planning.optimise.limits import Limits
from tcompile.planning.optimise.paths import Weights, shortest, so_far
from tcompile.planning.optimise.plan import Plan
from tcompile.planning.optimise.solver import EFFORT, Goal, solve
from tcompile.planning.optimise.stairs import right_edge
from tcompile.planning.optimise.tables import Tables


def solve_keep(
    tables: Tables,
    final: int,
    limits: Limits | None = None,
    *,
    eps: float = 0.0,
    effort: int | None = EFFORT,
) -> Plan:
    """The plan of a keep ratio: `final` tokens leave the model, more where more cost nothing.

    A count says how much goes, not where. Where follows from the exchange rate that the count
    itself implies: the λ at which the plan of least latency + λ · loss, free to end anywhere, goes
    over from fewer than `final` tokens to as many or more. (λ = 0: as fast as can be; λ = ∞: as
    good as the dense model.) At that λ the plan is solved to end between the least count from
    `final` on that steps can reach, and that count's right edge in the latency of the whole model.

    With a budget besides, the count is a bound and the budget decides: `solve` with
    `Limits.final_least`.

    Args:
        final: tokens, prefix included; need not be on the grid.
        eps, effort: as of `solve`; ε is also that of the right edge.

    Raises:
        UsageError: no allowed steps end in so many tokens; or the model has not so many.
    """
    limits = limits or Limits()
    if not tables.prefix < final <= tables.tokens:
        raise UsageError(f"{final} tokens cannot stay of {tables.tokens}", where="keep")
    links = chain(tables, limits)
    reached = so_far(links, Weights(0.0, 0.0))[-1].min(axis=(0, 1)) < np.inf
    counts = np.asarray(tables.counts)
    ends = counts[reached & links.final & (counts >= final)]
    if not len(ends):
        raise UsageError(f"no allowed steps end in {final} tokens or more", where="keep",
                         hint="ask for another count, or loosen the limits")  # fmt: skip
    least = int(ends[0])
    whole = tables.attn_ms.sum(axis=0) + tables.mlp_ms.sum(axis=0) + tables.head_ms
    edge = right_edge(tables.counts, whole, least, eps)
    most = edge if limits.final_most is None else min(edge, limits.final_most)
    goal = Goal("both", _rate(links, final))
    between = replace(limits, final_least=least, final_most=most)
    return solve(tables, goal, between, eps=eps, effort=effort)


def _rate(links: Chain, final: int) -> float:
    """The λ at which the free plan comes to end in so many tokens, in ms per unit of loss."""
    low, high = 2.0**-30, 2.0**30  # Of a quantum of loss, in quanta of latency.
    for _ in range(24):
        middle = sqrt(low * high)
        path = shortest(links, Weights(1.0, middle))
        ends = final if path is None else int(links.counts[path.at[-1] if path.at else -1])
        low, high = (low, middle) if ends >= final else (middle, high)
    return high * links.ms / links.loss
