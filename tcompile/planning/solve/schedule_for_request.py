"""The schedule of a request: the one given, a method's own, or one that is solved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_keep
from tcompile.planning.method_schedule import checked_schedule, schedule_for, site_constraints
from tcompile.planning.request import AUTO, NO_METHOD
from tcompile.planning.solve.latencies import profile_for
from tcompile.planning.solve.method_tables import methods_for
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
from tcompile.planning.solve.reasons import budget_of, fixed_outcome
from tcompile.planning.solve.solve import solve_request

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed
    from tcompile.planning.request import Request
    from tcompile.targets import Target


def schedule_for_request(
    model: Analysed, request: Request, target: Target, precision: str, say: Progress = silent
) -> tuple[Schedule, PlanReport | FixedPlan]:
    """The schedule to follow, how it was solved or whose it is, and why it keeps what it keeps.

    What is asked → the methods it is asked of → a profile of them → losses, tables, the solver and
    the report (`solve_request`).

    Raises:
        UsageError: no budget or two, no plan within them, an illegal site, a schedule for another
            model.
    """
    fixed = _fixed_schedule(model, request)
    if fixed is not None:
        return _fixed_plan(model, request, fixed)
    try:
        methods = methods_for(model, request)
    except UsageError:
        if request.method != AUTO or request.keep is None:
            raise
        # What topk says of the model is more to the point than that nothing can be planned.
        own = schedule_for(model, request.keep, "topk", request.outputs)
        return _fixed_plan(model, request, own)
    profile = profile_for(model, methods, target, request, precision, say)
    report = solve_request(model, request, methods, profile, say)
    if not report.schedule.reductions and request.method == AUTO:
        report = replace(report, schedule=replace(report.schedule, method=NO_METHOD))
    return report.schedule, report


def _fixed_schedule(model: Analysed, request: Request) -> Schedule | None:
    """The schedule of a request that leaves nothing to solve; None if there is something.

    Raises:
        UsageError: no budget, or a schedule or method that does not fit the model.
    """
    if request.schedule is not None:
        return checked_schedule(model, request.schedule, request.outputs)
    if not request.solved:
        return schedule_for(
            model, request.keep, request.method, request.outputs, request.calibration
        )
    if request.method.startswith(f"{AUTO}:"):
        raise UsageError("auto has no parameters", where="--method")
    if request.keep is not None and parse_keep(request.keep) == 1 and request.latency is None:
        return Schedule(request.method, model.analysis.shape, ())
    budgets = (request.keep, request.latency, request.max_drop)
    if request.objective != "pomt" and all(b is None for b in budgets):
        raise UsageError(
            "no budget given", where="--keep", hint="say --keep R, --latency MS or --max-drop D"
        )
    return None


def _fixed_plan(model: Analysed, request: Request, made: Schedule) -> tuple[Schedule, FixedPlan]:
    """A schedule that was not solved, and why it keeps what it keeps."""
    if not made.reductions and request.method == AUTO and request.schedule is None:
        made = replace(made, method=NO_METHOD)
    groups = site_constraints(model.analysis, request.outputs).groups
    outcome = fixed_outcome(request, made, groups, model.analysis.space.segments)
    return made, FixedPlan(outcome, budget_of(request))
