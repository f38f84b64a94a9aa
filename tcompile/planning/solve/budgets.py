"""The best plan of one method for budgets of latency and tokens, and the best of several.

A share of tokens alone says how many leave, not where. It is taken for what it would save in the
place where most papers let tokens leave: in one step (or the fewest that a method can) at a quarter
of the depth. The plan is as fast as that or faster, keeps at least that share, and loses the least;
counts that are free on the device's plateaus are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcompile.errors import UsageError
from tcompile.planning.optimise import Goal, Limits, Plan, dense_plan, or_dense, plan_of, solve
from tcompile.planning.solve.candidates import Candidate


@dataclass(frozen=True)
class Budget:
    """What a plan must keep to.

    Attributes:
        final: tokens that leave the encoder at least, prefix included; None: any.
        latency_ms: of one batch; None: what `final` at a quarter of the depth would take.
        eps: latencies that differ by no more than this share count as one plateau.
        band: share of the dense latency that predictions cannot tell apart.
    """

    final: int | None
    latency_ms: float | None
    eps: float
    band: float


@dataclass(frozen=True, eq=False)
class Choice:
    """A method's plan."""

    candidate: Candidate
    plan: Plan


def limits_of(candidate: Candidate, budget: Budget) -> Limits:
    """A method's limits, and the fewest tokens that may be left."""
    limits = candidate.limits
    if budget.final is None:
        return limits
    counts = candidate.tables.counts
    return replace(
        limits, final_least=next(c for c in counts if c >= min(budget.final, counts[-1]))
    )


def usual_plan(candidate: Candidate, final: int) -> Plan:
    """Down to `final` tokens or the least count from there on, at a quarter of the depth.

    Where a method cannot in one step, in the fewest from there on; where there are too few sites,
    as far as they reach.
    """
    tables, method = candidate.tables, candidate.method
    quarter = tables.blocks // 4
    target = next(c for c in tables.counts if c >= min(final, tables.tokens))
    count, block = tables.tokens, -1
    after: list[int] = []
    for rule in tables.sites:
        at = rule.place(tables.blocks)[0]
        if at >= quarter and at != block and count > target:
            patches = count - tables.prefix
            most = patches if rule.most_dropped is None else int(rule.most_dropped * patches)
            least = max(target, count - most, rule.least)
            reach = [c for c in tables.counts if least <= c < count
                     and (c - tables.prefix) % rule.granularity == 0]  # fmt: skip
            if reach:
                count, block = reach[0], at
        after.append(count)
    assert method.sites == tables.sites
    return plan_of(tables, after)


def best_of(candidate: Candidate, budget: Budget) -> Choice:
    """The plan of a method that loses least within the latency.

    Raises:
        UsageError: no plan keeps to the budgets; says what the nearest one takes.
    """
    assert budget.latency_ms is not None
    tables = candidate.tables
    goal = Goal("loss", latency_ms=budget.latency_ms)
    plan = solve(tables, goal, limits_of(candidate, budget), eps=budget.eps)
    if not plan.steps:
        why = f"the dense model's {plan.dense_ms:.4g} ms are within the budget"
        plan = replace(plan, declined=why)
    return Choice(candidate, plan)


def best_of_all(candidates: Sequence[Candidate], budget: Budget) -> tuple[Choice, list[Choice]]:
    """The plan that loses least of several methods', and each one's own.

    With a share of tokens alone: within the least latency that it has with any of the methods in
    the usual place. Where that is no faster than dense by more than the band, the dense model.

    Raises:
        UsageError: no method keeps to the budgets.
    """
    asked = budget
    if budget.latency_ms is None:
        assert budget.final is not None
        usual = [usual_plan(one, budget.final) for one in candidates]
        fastest = min(usual, key=lambda plan: plan.latency_ms)
        if fastest.latency_ms >= fastest.dense_ms * (1 - budget.band):
            first = candidates[usual.index(fastest)]
            declined = or_dense(first.tables, fastest, band=budget.band)
            why = declined.declined + _where_it_is(first, budget)
            each = [Choice(c, p) for c, p in zip(candidates, usual, strict=True)]
            return Choice(first, replace(declined, declined=why)), each
        # Plateaus are planned with at their highest, so the usual plan itself needs room.
        asked = replace(budget, latency_ms=fastest.latency_ms * (1 + budget.eps))
    found: list[Choice] = []
    reason: UsageError | None = None
    for one in candidates:
        try:
            found.append(best_of(one, asked))
        except UsageError as error:
            reason = reason or error
    if not found:
        assert reason is not None
        raise reason
    best = min(found, key=lambda choice: (choice.plan.loss, choice.plan.latency_ms))
    if best.plan.declined:
        return best, found
    return replace(best, plan=or_dense(best.candidate.tables, best.plan, band=budget.band)), found


def _where_it_is(candidate: Candidate, budget: Budget) -> str:
    """The most tokens with which the model would be faster, where latency falls in a step."""
    tables = candidate.tables
    patches = tables.tokens - tables.prefix
    for count in reversed(tables.counts[:-1]):
        if budget.final is not None and count >= budget.final:
            continue
        plan = usual_plan(candidate, count)
        if plan.latency_ms < plan.dense_ms * (1 - budget.band):
            share = (plan.final - tables.prefix) / patches
            return (f"; with {plan.final} tokens (--keep {math.floor(100 * share) / 100:.2f}) it "
                    f"would take {plan.latency_ms:.4g} ms")  # fmt: skip
    return ""


def dense_choice(candidate: Candidate, why: str) -> Choice:
    """The dense model, and why."""
    return Choice(candidate, replace(dense_plan(candidate.tables), declined=why))
