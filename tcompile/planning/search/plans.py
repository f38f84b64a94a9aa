"""Plans that were searched on images, as the solver gives them to the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.check import dense_grid
from tcompile.passes.reduce.restoring import rules_for
from tcompile.planning.optimise.tables import dense_plan
from tcompile.planning.options.budgets import Budget, MethodPlan, allowed_ms, ends_of
from tcompile.planning.options.method_tables import MethodTables
from tcompile.planning.request import AUTO
from tcompile.planning.restoring import MARGIN
from tcompile.planning.search.evidence import Runs
from tcompile.planning.search.level import Level
from tcompile.planning.search.rival import other_count, smaller_image
from tcompile.planning.search.search import Weighed, search, summed_up
from tcompile.planning.search.space import Space

#: Latencies between the fastest plan and the dense model that `--max-drop` weighs.
_LATENCIES = 15


@dataclass(frozen=True, eq=False)
class Searched:
    """The best plan within a budget.

    Attributes:
        best: it.
        each: the best of each method alone, and it.
        seen: all plans that were run on as many images as it.
        notes: what there is to say of other plans.
    """

    best: MethodPlan
    each: tuple[MethodPlan, ...]
    seen: tuple[MethodPlan, ...]
    notes: tuple[str, ...] = ()


def searched(
    options: Sequence[MethodTables], budget: Budget, runs: Runs, level: Level | None = None
) -> Searched:
    """The plan that loses least on images, within a budget.

    Raises:
        UsageError: none keeps to it.
    """
    most = allowed_ms(options, budget)
    tables = options[0].tables
    if budget.final is None and tables.dense_ms <= most:
        dense = MethodPlan(options[0], dense_plan(tables))
        return Searched(dense, (dense,), ())
    final = None if budget.final is None else max(ends_of(o, budget).most for o in options)
    if final == tables.tokens:
        final = budget.final
    space = Space(tuple(options), most, final, runs.request.restore)
    level = level or runs.level
    runs.expect(level.work(len(options)))
    found = search(space, lambda steps, n: runs.losses(space.schedule(steps), n), level)
    plans = [_plan(space, one, runs) for one in found]
    if runs.request.outputs == "restored" and runs.request.restore is None:
        plans[0] = _given_back(plans[0], runs, level)
    each: dict[str, MethodPlan] = {}
    for one in plans:
        each.setdefault(one.method, one)
    alone = [p for name, p in each.items() if " + " not in name or p is plans[0]]
    mine = Searched(plans[0], tuple(alone), tuple(plans))
    if level is not runs.level:  # one of several searches
        return mine
    gains = most < tables.dense_ms * (1 - budget.band)
    return _against(mine, space, found[0], runs, gains)


def _against(mine: Searched, space: Space, best: Weighed, runs: Runs, gains: bool) -> Searched:
    """The plan against its rivals: a smaller image, which is taken where it loses less and no share
    of tokens was asked for; and other counts in the same time, which are only named.

    Args:
        gains: whether the budget is faster than the dense model, as far as a prediction can tell.
    """
    notes: list[str] = []
    if space.final is not None and gains:
        notes += filter(None, [other_count(space, best, runs, runs.level)])
    if runs.request.method != AUTO:
        return replace(mine, notes=tuple(notes))
    small: MethodPlan | None = None
    try:
        small = smaller_image(space.options, space.most_ms, runs, mine.best.plan.loss)
    except Exception as error:  # a rival that nobody asked for must not end the plan
        notes.append(f"a smaller image was not weighed: {' '.join(str(error).split())[:200]}")
    if small is None:
        return replace(mine, notes=tuple(notes))
    small = replace(small, option=replace(small.option, words=runs.words))
    each, seen = (*mine.each, small), (*mine.seen, small)
    if space.final is not None or small.plan.loss >= mine.best.plan.loss:
        return replace(mine, each=each, seen=seen, notes=tuple(notes))
    notes.append(
        f"a smaller image loses less than fewer tokens in the same time: {small.plan.loss:.3g} "
        f"instead of {mine.best.plan.loss:.3g}"
    )
    return Searched(small, each, seen, tuple(notes))


def _plan(space: Space, found: Weighed, runs: Runs) -> MethodPlan:
    last = space.options[found.steps[-1].method]
    plan = replace(found.plan, loss=found.loss)
    option = replace(last, words=runs.words)
    return MethodPlan(option, plan, made=space.schedule(found.steps))


def _given_back(best: MethodPlan, runs: Runs, level: Level) -> MethodPlan:
    """The plan with the rule that loses least by which its outputs give tokens back; of rules that
    lose about the same, the cheapest."""
    made = best.schedule()
    losses: dict[str, float] = {}
    for rule in rules_for(made.reductions, dense_grid(runs.model.analysis)):
        with suppress(UsageError):  # which the model cannot do
            each = runs.losses(replace(made, restore=rule), level.images)
            losses[rule] = summed_up(each)
    least = min(losses.values(), default=best.plan.loss)
    chosen = next((r for r, loss in losses.items() if loss <= least * (1 + MARGIN)), None)
    if chosen is None:
        return best
    made = replace(made, restore=chosen)
    plan = replace(best.plan, loss=summed_up(runs.losses(made, level.last)))
    return replace(best, plan=plan, made=made)


class PlansByLatency(Sequence[MethodPlan]):
    """The best plan at each of several latencies, from the dense model's down; each is searched
    when it is asked for."""

    def __init__(self, options: Sequence[MethodTables], budget: Budget, runs: Runs) -> None:
        self.options, self.budget, self.runs = options, budget, runs
        self.level = replace(runs.level, rounds=1, refine=1, moves=0)
        dense = options[0].tables.dense_ms * (1 - budget.band)
        final = None if budget.final is None else ends_of(options[0], budget).most
        fastest = Space(tuple(options), np.inf, final).fastest_ms()
        most = dense if budget.latency_ms is None else min(dense, budget.latency_ms)
        if budget.final is not None:
            most = min(most, allowed_ms(options, budget))
        self.latencies = np.linspace(most, fastest, _LATENCIES) if fastest < most else np.zeros(0)
        self._found: dict[int, Searched] = {}

    def __len__(self) -> int:
        return len(self.latencies)

    @overload
    def __getitem__(self, at: int) -> MethodPlan: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[MethodPlan]: ...
    def __getitem__(self, at: int | slice) -> MethodPlan | Sequence[MethodPlan]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if at not in self._found:
            budget = replace(self.budget, latency_ms=float(self.latencies[at]) * (1 + 1e-9))
            self._found[at] = searched(self.options, budget, self.runs, self.level)
        return self._found[at].best

    @property
    def seen(self) -> list[MethodPlan]:
        """All plans that were run on as many images as the best ones."""
        return [plan for found in self._found.values() for plan in found.seen]
