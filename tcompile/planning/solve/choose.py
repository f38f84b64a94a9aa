"""The schedule of a request: the one given, a method's own, or one that is solved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tcompile.errors import UsageError
from tcompile.planning.methods import parse_keep
from tcompile.planning.own import room_of, schedule_for
from tcompile.planning.schedule import Schedule
from tcompile.planning.solve.latencies import profile_for
from tcompile.planning.solve.planned import Planned
from tcompile.planning.solve.solve import Question, solve_request
from tcompile.request import AUTO

if TYPE_CHECKING:
    from tcompile.request import Request
    from tcompile.stages import Analysed
    from tcompile.targets import Target


def choose(
    model: Analysed,
    request: Request,
    target: Target,
    precision: str,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Schedule, Planned | None]:
    """The schedule to follow, and where it was solved, how.

    Raises:
        UsageError: no budget or two, no plan within them, an illegal site, a schedule for another
            model.
    """
    if not request.solved:
        made = schedule_for(model, request.keep, request.method, request.schedule,
                            request.outputs, request.calibration)  # fmt: skip
        return made, None
    if request.method.partition(":")[0] == AUTO and request.method != AUTO:
        raise UsageError("auto has no parameters", where="--method")
    if request.keep is not None and parse_keep(request.keep) == 1 and request.latency is None:
        return Schedule(request.method, model.analysis.shape, ()), None
    budgets = (request.keep, request.latency, request.max_drop)
    if request.objective != "pomt" and all(b is None for b in budgets):
        raise UsageError("no budget given", where="--keep",
                         hint="say --keep R, --latency MS or --max-drop D")  # fmt: skip
    question = Question(model, room_of(model.analysis, request.outputs), request)
    try:
        methods = question.methods()
    except UsageError:
        if request.method != AUTO or request.keep is None:
            raise
        # What topk says of the model is more to the point than that nothing can be planned.
        made = schedule_for(model, request.keep, "topk", None, request.outputs)
        return made, None
    profile = profile_for(model, methods, target, request, precision, say)
    planned = solve_request(question, methods, profile, say)
    return planned.schedule, planned
