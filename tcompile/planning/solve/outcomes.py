"""What was asked, what is given, and why the plan keeps as many tokens as it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tcompile.core.schedule import Schedule, Shape
from tcompile.core.site import SiteName
from tcompile.methods.composition import parse_keep
from tcompile.planning.options.budgets import Budget, MethodPlan, ends_of
from tcompile.planning.options.outcome import Emitted, Outcome, Reason, Share
from tcompile.planning.request import AUTO, Request
from tcompile.planning.solve.plan_report import BAND
from tcompile.profiling.profile import Profile


def plateau_claim(profile: Profile) -> tuple[bool, str]:
    """Tell whether a profile's plateaus may be taken for what they are, and if not, why.

    A modelled CPU's figures are timed in two seconds before each plan. What is flat on a busy
    machine is a slope on an idle one, and one command must not keep now 118 and now 128 tokens.
    """
    if profile.kind == "modelled" and profile.conditions.threads:
        return False, "it is modelled from a short look at this CPU (--profile measure has them)"
    return profile.claims_plateaus, profile.why_no_plateaus


def asked_share(request: Request, shape: Shape) -> Share | None:
    """The share that --keep asks of a model: ceil(R · T) of T patches."""
    if request.keep is None:
        return None
    keep = parse_keep(request.keep)
    return Share(float(keep), math.ceil(keep * shape.patches), shape.patches)


def budget_of(request: Request) -> dict[str, Any]:
    """The budgets that were asked, by name."""
    keep = None if request.keep is None else float(parse_keep(request.keep))
    asked = {
        "keep": keep,
        "exact": request.exact or None,
        "latency_ms": request.latency,
        "max_drop": request.max_drop,
        "objective": request.objective,
    }
    return {k: v for k, v in asked.items() if v is not None}


def budget_words(request: Request) -> tuple[str, ...]:
    """Budgets beside --keep, in words."""
    found = []
    if request.latency is not None:
        found.append(f"at most {request.latency:.4g} ms")
    if request.max_drop is not None:
        found.append(f"a drop of at most {100 * request.max_drop:.3g} %")
    if request.objective == "pomt":
        found.append("the most utility")
    return tuple(found)


def solved_outcome(request: Request, best: MethodPlan, profile: Profile, budget: Budget) -> Outcome:
    """The outcome of a schedule that was solved."""
    plan, shape = best.plan, best.option.method.context.shape
    asked, reduced = asked_share(request, shape), bool(plan.steps) or best.resized
    if asked is not None:
        reason, why = _of_share(asked, best, profile, budget)
    elif reduced:
        reason, why = _of_budget(request)
    elif best.reason == "budget":
        sure = f"modelled, ± {BAND['modelled']:.0%}" if profile.kind == "modelled" else profile.kind
        reason = "budget"
        why = f"its {plan.dense_ms:.4g} ms ({sure}) are within what was asked"
    else:
        reason, why = best.reason, best.why
    kept = Share.kept(plan.final - shape.prefix, shape.patches)
    emitted: Emitted = "reduced" if reduced else "dense"
    return Outcome(emitted, reason, why, kept, asked, budget_words(request))


def _of_budget(request: Request) -> tuple[Reason, str]:
    if request.objective == "pomt":
        return "utility", "the utility is highest there"
    if request.max_drop is not None:
        return "drop", "that is the fastest that was seen to lose no more"
    return "budget", "that loses the least within it"


def _of_share(
    asked: Share, best: MethodPlan, profile: Profile, budget: Budget
) -> tuple[Reason, str]:
    option, plan = best.option, best.plan
    prefix, name = option.tables.prefix, option.method.preset.name
    ends = ends_of(option, budget)
    kept, least, edge = (n - prefix for n in (plan.final, ends.least, ends.edge))
    if kept == asked.of == asked.patches:
        return "asked", "all patch tokens were asked for"
    if kept > least:
        why = (
            f"{least} to {kept} patch tokens take the same time on "
            f"{profile.conditions.target} within {budget.eps:.0%} ({profile.kind})"
        )
        return "plateau", why + ("; at most a tenth more than asked is kept" if edge > kept else "")
    if kept > asked.patches:
        grain = max(rule.granularity for rule in option.tables.sites)
        if grain > 1:
            return "groups", _together(grain, option.method.analysis.space.segments)
        return "method", f"{name} can keep no fewer here"
    if budget.exact:
        return "exact", "that is what was asked (--exact)"
    claims, doubt = plateau_claim(profile)
    if not claims:
        said = f": {doubt}" if doubt else ""
        return "asked", f"that is what was asked; the profile claims no plateau{said}"
    return "asked", "that is what was asked" + ("" if edge > least else ", and no more is free")


def _together(grain: int, segments: int) -> str:
    """The words for patches that leave only so many at a time."""
    if segments > 1:
        return f"patches leave {grain} at a time, as many from each of {segments} segments"
    return f"patches leave in groups of {grain}"


def fixed_outcome(
    request: Request, schedule: Schedule, groups: Mapping[SiteName, int], segments: int = 1
) -> Outcome:
    """The outcome of a method's own schedule, or of one that was given.

    Args:
        groups: site → patches that leave together, where that is more than one.
        segments: frames or windows, each of which loses as many.
    """
    shape = schedule.model
    asked = asked_share(request, shape)
    kept = Share.kept(schedule.final, shape.patches)
    emitted: Emitted = "dense" if schedule.dense else "reduced"
    if request.schedule is not None:
        return Outcome(
            emitted, "schedule", "the schedule says so", kept, None, ("the schedule given",)
        )
    own = schedule.method if request.method == AUTO else request.method
    name, _, given = own.partition(":")
    grain = max((groups.get(r.site, 1) for r in schedule.reductions), default=1)
    together = "" if grain == 1 else _together(grain, segments)
    reason, why = _of_method(request, schedule, asked, name, together)
    return Outcome(emitted, reason, why, kept, asked, (own,) if asked is None or given else ())


def _of_method(
    request: Request, schedule: Schedule, asked: Share | None, name: str, together: str
) -> tuple[Reason, str]:
    kept, patches = schedule.final, schedule.model.patches
    if asked is not None and kept == asked.patches:
        if kept == patches:
            return "asked", "all patch tokens were asked for"
        if request.exact:
            return "exact", "that is what was asked (--exact)"
        return "asked", f"that is what was asked, by {name}'s own schedule"
    back = [r for r in schedule.reductions if r.site.returns]
    if back or (kept == patches and schedule.reductions):
        fewest = min(r.keep for r in schedule.reductions)
        return "method", f"with {name} all come back; {fewest} are left in between"
    if schedule.resized is not None:
        rows, columns = schedule.resized.grid
        return "method", f"the image has {rows} x {columns} patches, a grid of the model's shape"
    if not schedule.reductions:
        return "method", f"no token leaves with these parameters of {name}"
    if asked is not None and together and kept > asked.patches:
        return "groups", together
    if asked is None:
        return "method", f"those are the counts of {name} with these parameters"
    return "method", f"{name} cannot come closer: it goes by counts of its own"
