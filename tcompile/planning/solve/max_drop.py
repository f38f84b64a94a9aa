"""The fastest plan that loses no more than it may, seen on images that nothing was planned with.

Losses of single steps only rank plans. So plans of the Pareto front are built and run on images of
their own, by bisection: what loses less by the tables is taken to lose less on images. The bound of
the drop is one for the best of as many as may be run (`losses.drop`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

from tcompile.core.errors import UsageError
from tcompile.planning.losses import Drop, images_needed
from tcompile.planning.optimise import Plan, front
from tcompile.planning.solve.budgets import Budget, MethodPlan, dense_plan_of, limits_of
from tcompile.planning.solve.method_tables import MethodTables
from tcompile.planning.solve.trial import Trial

#: Of a bound, before it is shared among the plans that are tried.
CONFIDENCE = 0.9
#: Plans of the front that are weighed; a bisection runs log2 of them, and one more.
_POINTS = 40


def fastest_within(
    options: Sequence[MethodTables], budget: Budget, most: float, trial: Trial
) -> tuple[MethodPlan, Drop | None]:
    """The fastest plan whose drop on the images is at most `most`, for certain as far as they tell.

    The dense model where no other plan is.

    Raises:
        UsageError: with a latency or a share of tokens besides: no plan keeps to both.
    """
    plans, tables = _by_loss(options, budget), options[0].tables
    if not plans:
        why = (
            f"no plan is predicted to be faster than the dense model's {tables.dense_ms:.4g} ms "
            f"by more than {budget.band:.0%}"
        )
        return dense_plan_of(options[0], "drop", why), None
    tries = math.ceil(math.log2(len(plans) + 1))
    confidence = 1 - (1 - CONFIDENCE) / tries
    best: tuple[MethodPlan, Drop] | None = None
    failed: list[Drop] = []
    low, high = 0, len(plans) - 1  # Of plans that are not known to lose too much.
    while low <= high:
        middle = (low + high) // 2
        one = plans[middle]
        trial.say(f"trying {one.plan.latency_ms:.4g} ms with {one.option.method.text}")
        drop = trial.drop(one.option.schedule(one.plan), confidence)
        if drop.upper <= most:
            best, low = (one, drop), middle + 1
        else:
            failed, high = [*failed, drop], middle - 1
    if best is not None:
        return best
    nearest = min(failed, key=attrgetter("upper"))
    why = (
        f"no plan was seen to lose at most {most:.2%}: of those run, the best lost "
        f"{nearest.mean:.2%}, and at most {nearest.upper:.2%} for all that {nearest.images} images "
        "tell"
    )
    need = images_needed(most, confidence, labels=trial.images.labels is not None)
    if nearest.images < need and nearest.exact:
        why += f"; it takes {need} images to check on to show so little"
    within = "" if budget.latency_ms is None else f", within {budget.latency_ms:.4g} ms"
    if budget.final is not None:
        within += f", with {budget.final - tables.prefix} patch tokens kept"
    if within:
        raise UsageError(
            why + within, where="--max-drop", hint="allow more latency or drop, or give more images"
        )
    return dense_plan_of(options[0], "drop", why), nearest


def _by_loss(options: Sequence[MethodTables], budget: Budget) -> list[MethodPlan]:
    """Plans of all methods' fronts that no other beats, from the least loss to the most."""
    found: list[MethodPlan] = []
    reason: UsageError | None = None
    for option in options:
        try:
            plans = front(option.tables, limits_of(option, budget), points=_POINTS)
        except UsageError as error:
            reason = reason or error
            continue
        found += [MethodPlan(option, p) for p in plans if _counts(p, budget)]
    if not found and reason is not None:
        raise reason
    if budget.latency_ms is not None and not found:
        raise UsageError(f"no plan takes {budget.latency_ms:.4g} ms", where="--latency")
    kept: list[MethodPlan] = []
    for one in sorted(found, key=lambda c: (c.plan.loss, c.plan.latency_ms)):
        if not kept or one.plan.latency_ms < kept[-1].plan.latency_ms:
            kept.append(one)
    return kept


def _counts(plan: Plan, budget: Budget) -> bool:
    """Tell whether a plan is worth running: in budget, and predicted to be faster than dense by
    more than the band, unless its count of tokens was asked for."""
    if not plan.steps or (budget.latency_ms is not None and plan.latency_ms > budget.latency_ms):
        return False
    return plan.latency_ms < plan.dense_ms * (1 - budget.band) or budget.final is not None
