"""The planner's question and its answer.

minimise    w_t · latency + w_d · loss
over        counts n_0 ≥ n_1 ≥ … at the sites, every step within the limits
subject to  latency ≤ B, loss ≤ D, tokens that leave within bounds

First the dual (`bounds`), which gives a good plan and rules out most steps, then label setting over
what is left (`labels`). Exact unless more labels remain than `effort`; then they are trimmed, on
the axis that is minimised so that budgets hold all the same, and `Plan.gap` says what that may have
cost: the lesser of the widths trimmed and of the distance to the dual bound.

Among plans with the same objective: the less loss, the less latency, then the more tokens carried,
then the fewer steps. Equal means to 2⁻³⁸ of the largest sum (`chain`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tcompile.core.errors import InternalError, UsageError
from tcompile.planning.optimise.bounds import Axis, Problem, start, tightened, worthwhile
from tcompile.planning.optimise.chain import Chain, chain
from tcompile.planning.optimise.labels import Found, search
from tcompile.planning.optimise.limits import Limits
from tcompile.planning.optimise.paths import Path, Weights
from tcompile.planning.optimise.plan import Plan, plan_of
from tcompile.planning.optimise.plateaus import flattened
from tcompile.planning.optimise.tables import Tables

#: Labels held at a site by default: one to two seconds at most for 48 blocks and 200 counts, where
#: 10,000 proved every plan tried the best, in up to three.
EFFORT = 3000
#: Labels of the first search, which only looks for a good plan.
HASTY = 200
#: Steps from which on a limit on them is first left out: plans seldom have more.
MANY = 4


@dataclass(frozen=True)
class Goal:
    """What is minimised, within which budgets.

    Attributes:
        minimise: `loss`, `latency`, or `both`: latency + trade · loss.
        trade: λ, the ms that one unit of loss is worth.
        latency_ms, loss: budgets; None: any.
    """

    minimise: Literal["loss", "latency", "both"]
    trade: float = 0.0
    latency_ms: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("trade", "latency_ms", "loss"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < float("inf"):
                raise UsageError(
                    f"{number} is no budget: it must be finite and not negative", where=name
                )

    def value(self, latency: float, loss: float) -> float:
        """The objective."""
        by = {"loss": loss, "latency": latency, "both": latency + self.trade * loss}
        return by[self.minimise]


def solve(
    tables: Tables,
    goal: Goal,
    limits: Limits | None = None,
    *,
    eps: float = 0.0,
    effort: int | None = EFFORT,
) -> Plan:
    """The best plan.

    Args:
        eps: latencies of a plateau that differ by no more than this share count as equal, as the
            highest of them, so that a plan has all the tokens that the plateau gives away. The
            plan's latency is that of the tables, and no higher than what was budgeted for.
        effort: labels to hold at a site; None: all that may matter, exact however long it takes.

    Raises:
        UsageError: no plan keeps to the limits and budgets; says what the nearest one takes.
    """
    limits = limits or Limits()
    flat = flattened(tables, eps) if eps > 0 else tables

    def under(limits: Limits) -> Plan:
        path, gap = best_path(chain(flat, limits), goal, effort)
        plan = plan_of(tables, [tables.counts[i] for i in path.at])
        return replace(plan, gap=gap, objective=goal.value(plan.latency_ms, plan.loss))

    if limits.max_steps is not None and limits.max_steps >= MANY:
        # The best of any number of steps is the best of few if it has few, and found sooner.
        try:
            plan = under(replace(limits, max_steps=None))
        except UsageError:
            pass  # To be refused with what can be reached in so many steps.
        else:
            if len(plan.steps) <= limits.max_steps:
                return plan
    return under(limits)


def best_path(links: Chain, goal: Goal, effort: int | None) -> tuple[Path, float]:
    """The best path, and how much better the objective could be."""
    ms = None if goal.latency_ms is None else links.latency_budget(goal.latency_ms)
    loss = None if goal.loss is None else links.loss_budget(goal.loss)
    weights = {
        "loss": Weights(0.0, 1.0),
        "latency": Weights(1.0, 0.0),
        # In quanta of latency, so that numbers stay in range.
        "both": Weights(1.0, goal.trade * links.loss / links.ms),
    }[goal.minimise]
    # A budget on what is minimised is looked at last: the least is then the nearest there is.
    problem = Problem(
        weights,
        None if goal.minimise == "latency" else ms,
        None if goal.minimise == "loss" else loss,
    )
    first = start(links, problem)
    if first is None:
        raise UsageError(
            "no allowed steps end in a token count that was asked for",
            where="plan",
            hint="ask for another count, or loosen the limits",
        )
    for over, least in first.unreachable.items():
        raise _out_of_reach(goal, over, least * (links.ms if over == "ms" else links.loss))
    axis: Axis = "ms" if goal.minimise == "latency" or problem.loss is not None else "loss"
    path, bounds = first.best, first.bounds
    two = len(list(problem.budgets())) == 2
    if path is None and two:
        fastest = Goal("latency", latency_ms=goal.latency_ms, loss=goal.loss)
        path, _ = best_path(links, fastest, effort)
        bounds = tightened(bounds, problem, path)
    # A hasty search first: a better plan at hand rules out most of what a thorough one looks at.
    for most in (HASTY if effort is None else min(HASTY, effort), effort):
        found = search(links, worthwhile(links, bounds), bounds, axis, most)
        path = _choose(found, problem, path)
        if not found.error:
            break
        bounds = tightened(bounds, problem, path)
    if path is None:
        raise InternalError("the search lost every plan", where="tcompile.planning.optimise")
    gap = 0.0
    if found.error:
        cost = found.error * (weights.ms if axis == "ms" else weights.loss)
        # On the axis of a budget, labels may have been trimmed that were the only ones within it.
        cost = float("inf") if two else cost
        unit = links.loss if goal.minimise == "loss" else links.ms
        gap = unit * max(min(cost, weights.of(path) - first.lower), 0.0)
    if goal.minimise == "loss" and loss is not None and path.loss > loss:
        raise _out_of_reach(goal, "loss", path.loss * links.loss, gap)
    if goal.minimise == "latency" and ms is not None and path.ms > ms:
        raise _out_of_reach(goal, "ms", path.ms * links.ms, gap)
    return path, gap


def _choose(found: Found, problem: Problem, known: Path | None) -> Path | None:
    """The best of the labels by the order of the module's docstring, and of a plan at hand."""
    labels, weights = found.labels, problem.weights
    value = weights.ms * labels.ms + weights.loss * labels.loss
    for axis, budget in problem.budgets():
        value = np.where(getattr(labels, axis) <= budget, value, np.inf)
    order = np.lexsort((labels.steps, -labels.tokens, labels.ms, labels.loss, value))
    if len(order) and np.isfinite(value[order[0]]):
        best = found.path(int(order[0]))
        if known is None or not found.error:
            return best
        return min(best, known, key=lambda p: (weights.of(p), p.loss, p.ms))
    return known


def _out_of_reach(goal: Goal, axis: Axis, least: float, gap: float = 0.0) -> UsageError:
    """What was asked for, and the nearest that there is."""
    about = f", perhaps {least - gap:.4g} if searched with more effort" if gap else ""
    if axis == "ms":
        within = f" with a loss of at most {goal.loss:.4g}" if goal.loss is not None else ""
        return UsageError(
            f"no plan{within} takes at most {goal.latency_ms:.4g} ms: "
            f"the fastest takes {least:.4g} ms{about}",
            where="latency budget",
            hint="allow more ms, more loss, or more sites",
        )
    within = f" within {goal.latency_ms:.4g} ms" if goal.latency_ms is not None else ""
    return UsageError(
        f"no plan{within} loses at most {goal.loss:.4g}: the least loss is {least:.4g}{about}",
        where="loss budget",
        hint="allow more loss or more ms",
    )
