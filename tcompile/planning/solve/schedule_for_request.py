"""The schedule of a request: the one given, a method's own, or one that is solved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_keep
from tcompile.planning.method_schedule import schedule_for, site_constraints
from tcompile.planning.request import AUTO, NO_METHOD
from tcompile.planning.solve.latencies import profile_for
from tcompile.planning.solve.planned import Followed, PlanReport
from tcompile.planning.solve.reasons import budget_of, followed_outcome
from tcompile.planning.solve.solve import PlanningProblem, solve_request

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed
    from tcompile.planning.request import Request
    from tcompile.targets import Target


def schedule_for_request(
    model: Analysed, request: Request, target: Target, precision: str, say: Progress = silent
) -> tuple[Schedule, PlanReport | Followed]:
    """The schedule to follow, how it was solved or whose it is, and why it keeps what it keeps.

    Raises:
        UsageError: no budget or two, no plan within them, an illegal site, a schedule for another
            model.
    """
    room = site_constraints(model.analysis, request.outputs)

    def followed(made: Schedule) -> tuple[Schedule, Followed]:
        if not made.reductions and request.method == AUTO and request.schedule is None:
            made = replace(made, method=NO_METHOD)
        outcome = followed_outcome(request, made, room.groups, model.analysis.space.segments)
        return made, Followed(outcome, budget_of(request))

    if not request.solved:
        return followed(
            schedule_for(
                model,
                request.keep,
                request.method,
                request.schedule,
                request.outputs,
                request.calibration,
            )
        )
    if request.method.partition(":")[0] == AUTO and request.method != AUTO:
        raise UsageError("auto has no parameters", where="--method")
    if request.keep is not None and parse_keep(request.keep) == 1 and request.latency is None:
        return followed(Schedule(request.method, model.analysis.shape, ()))
    budgets = (request.keep, request.latency, request.max_drop)
    if request.objective != "pomt" and all(b is None for b in budgets):
        raise UsageError(
            "no budget given", where="--keep", hint="say --keep R, --latency MS or --max-drop D"
        )
    question = PlanningProblem(model, room, request)
    try:
        methods = question.methods()
    except UsageError:
        if request.method != AUTO or request.keep is None:
            raise
        # What topk says of the model is more to the point than that nothing can be planned.
        return followed(schedule_for(model, request.keep, "topk", None, request.outputs))
    profile = profile_for(model, methods, target, request, precision, say)
    planned = solve_request(question, methods, profile, say)
    if not planned.schedule.reductions and request.method == AUTO:
        planned = replace(planned, schedule=replace(planned.schedule, method=NO_METHOD))
    return planned.schedule, planned
