"""The best plan of one method for budgets of latency and tokens, and the best of several.

A share of tokens alone says how many leave, not where. It is taken for what it would save in the
place where most papers let tokens leave: in one step (or the fewest that a method can) at a quarter
of the depth. The plan is as fast as that or faster, ends with that share, and loses the least; a
count that is free on a plateau of the device is taken, by at most a tenth more than asked.

A prediction never gives back the dense model where a share was asked for. Where it sees nothing to
gain, tokens leave in the usual place, since a prediction then has nothing to say of a better one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce.reducers.common import TOPK_LIMIT
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.solver import solve
from tcompile.planning.optimise.tables import Floats, Plan, Tables, dense_plan, flattened, plan_of
from tcompile.planning.options.method_tables import MethodTables
from tcompile.planning.options.outcome import Reason
from tcompile.profiling.plateaus import free_edge

#: Patch tokens that are kept over those asked for, at most, where they are free: one tenth.
_MORE = 10
#: Rounding of sums of latencies.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """The limits that a plan must keep to.

    Attributes:
        final: tokens that were asked to leave the encoder, prefix included; None: any number.
        latency_ms: of one batch; None: what `final` at a quarter of the depth would take.
        eps: latencies that differ by no more than this share count as one plateau; 0: there are no
            plateaus to speak of.
        band: share of the dense latency that predictions cannot tell apart.
        exact: whether `final` must be met even where more is free.
    """

    final: int | None
    latency_ms: float | None
    eps: float
    band: float
    exact: bool = False


@dataclass(frozen=True)
class Ends:
    """Tokens that may leave the encoder, prefix included, for a share that was asked.

    Attributes:
        least: the first count there is from the one asked for on.
        most: the largest that is free and allowed.
        edge: the largest that is free.
    """

    least: int
    most: int
    edge: int


@dataclass(frozen=True, eq=False)
class MethodPlan:
    """A method's plan.

    Attributes:
        option, plan: the method, and its plan.
        reason, why: where the plan takes no step: why.
        made: its schedule, where its steps may be of several methods.
    """

    option: MethodTables
    plan: Plan
    reason: Reason = "budget"
    why: str = ""
    made: Schedule | None = None

    @property
    def resized(self) -> bool:
        """True where it is of a smaller image."""
        return self.made is not None and self.made.resized is not None

    @property
    def method(self) -> str:
        """The method, or the methods, by name."""
        return self.option.method.text if self.made is None else self.made.method

    def schedule(self, notes: Sequence[str] = ()) -> Schedule:
        """The schedule to follow, with more notes.

        Raises:
            UsageError: the reducer cannot do the steps one after another.
        """
        if self.made is None:
            return self.option.schedule(self.plan, notes)
        return replace(self.made, notes=(*notes, *self.made.notes))


def ends_of(option: MethodTables, budget: Budget) -> Ends:
    """Numbers of tokens that a method's plan may end with; `budget` must say how many were asked.

    Never with all of them, however free they are, unless all were asked for.
    """
    assert budget.final is not None
    tables = option.tables
    counts, prefix = tables.counts, tables.prefix

    def can(count: int) -> bool:
        return count == counts[-1] or any(
            count >= rule.least and (count - prefix) % rule.granularity == 0
            for rule in tables.sites
        )

    least = next(c for c in counts if c >= min(budget.final, counts[-1]) and can(c))
    if budget.exact or budget.eps <= 0 or least == counts[-1]:
        return Ends(least, least, least)
    edge = free_edge(counts, _behind(tables), least, budget.eps)
    tenth = prefix + (budget.final - prefix) * (_MORE + 1) // _MORE
    fits = [c for c in counts[:-1] if least <= c <= min(edge, tenth) and can(c)]
    return Ends(least, max(fits, default=least), edge)


def _behind(tables: Tables) -> Floats:
    """[G] ms of all from a quarter of the depth on, by count."""
    first = tables.blocks // 4
    blocks = tables.attn_ms[first:].sum(axis=0) + tables.mlp_ms[first:].sum(axis=0)
    return blocks + tables.head_ms  # type: ignore[no-any-return]


def limits_of(option: MethodTables, budget: Budget) -> Limits:
    """No TopK that TensorRT would refuse, and the tokens that may be left."""
    if budget.final is None:
        return Limits()
    ends = ends_of(option, budget)
    return Limits(final_least=ends.least, final_most=ends.most)


def usual_plan(option: MethodTables, final: int, tables: Tables | None = None) -> Plan:
    """Down to `final` tokens or the least count from there on, at a quarter of the depth.

    Where a method cannot in one step, in the fewest from there on; where too few sites follow, from
    the first one on; and where that is not enough either, as far as they reach.

    Args:
        tables: other latencies than the option's; the grid must be the same.
    """
    tables = tables or option.tables
    target = next(c for c in tables.counts if c >= min(final, tables.tokens))
    after: list[int] = []
    for first in (tables.blocks // 4, 0):
        after = _down_from(tables, first, target)
        if after and after[-1] == target:
            break
    return plan_of(tables, after)


def _down_from(tables: Tables, first: int, target: int) -> list[int]:
    """Tokens behind each site, with the fewest steps from a block on."""
    count, block = tables.tokens, -1
    after: list[int] = []
    for rule in tables.sites:
        at = rule.place(tables.blocks)[0]
        if at >= first and at != block and count > target:
            patches = count - tables.prefix
            most = patches if rule.most_dropped is None else int(rule.most_dropped * patches)
            least = max(target, count - most, rule.least)
            reach = [
                c
                for c in tables.counts
                if least <= c < count and (c - tables.prefix) % rule.granularity == 0
            ]
            if reach:
                count, block = reach[0], at
        after.append(count)
    return after


def best_of_all(
    options: Sequence[MethodTables], budget: Budget
) -> tuple[MethodPlan, list[MethodPlan]]:
    """The plan that loses least of several methods', and each one's own.

    With a share of tokens: no slower than the fastest of the methods is in the usual place.

    Raises:
        UsageError: no method keeps to the budgets.
    """
    most = math.inf if budget.latency_ms is None else budget.latency_ms
    limits = [(option, most) for option in options]
    if budget.final is not None:
        usual = _usual(options, budget)
        fastest = min(one.plan.latency_ms for one, _ in usual)
        fits = [one for one, _ in usual if one.plan.latency_ms <= most]
        if fits and fastest >= usual[0][0].plan.dense_ms * (1 - budget.band):
            # Nothing to gain by the prediction: it cannot tell a better place than the usual one.
            return _least_loss(fits), fits
        limits = [(one.option, ms) for one, ms in _in_time(usual, budget.band, most)]
    found: list[MethodPlan] = []
    reasons: list[UsageError] = []
    for option, ms in limits:
        try:
            plan = solve(option.tables, ms, limits_of(option, budget), eps=budget.eps)
            found.append(MethodPlan(option, plan))
        except UsageError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return _least_loss(found), found


def allowed_ms(options: Sequence[MethodTables], budget: Budget) -> float:
    """The ms that the best of several methods may take: the budget of latency, and with a share of
    tokens what the fastest takes in the usual place, or the dense model where that is faster, both
    as far as a prediction can tell.

    Raises:
        UsageError: none can come down to so few tokens.
    """
    most = math.inf if budget.latency_ms is None else budget.latency_ms
    if budget.final is None:
        return most
    usual = _usual(options, budget)
    fastest = min(ms for _, ms in usual)
    if fastest >= usual[0][0].plan.dense_ms * (1 - budget.band):
        # Nothing to gain by the prediction: as slow as dense is no slower than it can tell.
        fastest = max(fastest, usual[0][0].plan.dense_ms)
    return min(fastest * (1 + budget.band), most)


def _least_loss(plans: Sequence[MethodPlan]) -> MethodPlan:
    return min(plans, key=lambda one: (one.plan.loss, one.plan.latency_ms))


def _in_time(
    usual: Sequence[tuple[MethodPlan, float]], band: float, most: float
) -> list[tuple[MethodPlan, float]]:
    """The ms that each method's plan may take: those of the fastest in the usual place, or its own
    where a prediction cannot tell the two apart; and no more than the budget."""
    fastest = min(ms for _, ms in usual)
    return [
        (one, min((ms if ms <= fastest * (1 + band) else fastest) * (1 + _ROUNDING), most))
        for one, ms in usual
    ]


def _usual(options: Sequence[MethodTables], budget: Budget) -> list[tuple[MethodPlan, float]]:
    """The usual plan of each method that can, with all that is free, and the ms that it takes with
    every plateau at its highest, as plans are solved.

    Raises:
        UsageError: none can come down to so few tokens.
    """
    found: list[tuple[MethodPlan, float]] = []
    short: list[tuple[int, str]] = []
    for option in options:
        ends, tables = ends_of(option, budget), option.tables
        if tables.tokens > ends.least > tables.prefix + TOPK_LIMIT:
            raise UsageError(
                f"keeping {ends.least - tables.prefix} tokens is beyond TensorRT's "
                f"TopK limit of {TOPK_LIMIT}",
                where="--keep",
            )
        plan = usual_plan(option, ends.most)
        if plan.final > ends.most:
            short.append((plan.final - tables.prefix, option.method.preset.name))
            continue
        flat = flattened(tables, budget.eps) if budget.eps > 0 else tables
        ms = max(usual_plan(option, end, flat).latency_ms for end in (ends.least, ends.most))
        found.append((MethodPlan(option, plan), ms))
    if not found:
        assert budget.final is not None
        fewest, name = min(short)
        wanted = budget.final - options[0].tables.prefix
        raise UsageError(
            f"{name} cannot come down to {wanted} patch tokens: {fewest} are the fewest here",
            where="--keep",
            hint="ask for more, or another --method",
        )
    return found


def next_step_down(option: MethodTables, plan: Plan, band: float) -> str:
    """The most tokens with which the model would be faster, where latency falls in a step."""
    tables = option.tables
    patches = tables.tokens - tables.prefix
    for count in reversed([c for c in tables.counts if c < plan.final]):
        lower = usual_plan(option, count)
        if lower.latency_ms < lower.dense_ms * (1 - band):
            share = (lower.final - tables.prefix) / patches
            return (
                f"; with {lower.final} tokens (--keep {math.floor(100 * share) / 100:.2f}) it "
                f"would take {lower.latency_ms:.4g} ms"
            )
    return ""


def dense_plan_of(option: MethodTables, reason: Reason, why: str) -> MethodPlan:
    """The dense model, and why."""
    return MethodPlan(option, dense_plan(option.tables), reason, why)
