"""Plan and reduce: from the model that was read to the reduced fp32 graph, and parts of the way.

What cannot be planned or reduced is known here, before anything is written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_method
from tcompile.passes.reduce.check import without_schedule
from tcompile.passes.reduce.towers import reduce_towers
from tcompile.passes.runner import Dump
from tcompile.passes.stages import Analysed, Reduced
from tcompile.pipeline.reading import read_asked
from tcompile.planning.cost import cost_of
from tcompile.planning.memory import memory_plan
from tcompile.planning.method_schedule import for_towers, tower_notes
from tcompile.planning.precisions import (
    AUTO_PRECISION,
    InPrecision,
    best_precision,
    check_weighable,
)
from tcompile.planning.remedy import remedy
from tcompile.planning.request import Request
from tcompile.planning.resolution import is_resolution, resized_model, with_position_rule
from tcompile.planning.restoring import with_rule
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport, PlanWithCost
from tcompile.planning.solve.solve import schedule_for_request
from tcompile.runtime.token_outputs import recorded, recorded_choice
from tcompile.targets import Target, load_target
from tcompile.targets.devices import ON_IMAGES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tcompile.planning.request import Asked


def plan(
    model: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> Schedule:
    """The schedule that `build` would follow; writes nothing.

    Args:
        precision: see `build`.
        asked: keep, latency, max_drop, method, …: see `tcompile.planning.request.Request`.

    Raises:
        UsageError: as `read`; no budget, no plan within it, an illegal site.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = read_asked(model, request)
    _, made, planned = planned_in(read_model, request, chosen, precision, progress)
    if read_model.analysis.others or made.resized is not None:
        # What another tower can follow, or a smaller grid, is known once it has.
        return apply_asked(read_model, made, request, planned).schedule
    return with_towers(read_model, made, request.outputs)


def price(
    model: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    progress: Progress = silent,
    **asked: Unpack[Asked],
) -> PlanWithCost:
    """The schedule that `build` would follow, what its scores and reducers add, and where it was
    solved, what it is predicted to take and lose; writes nothing. Arguments and errors as `plan`.
    """
    request, chosen = Request.of(asked), load_target(target)
    read_model = read_asked(model, request)
    level, made, planned = planned_in(read_model, request, chosen, precision, progress)
    reduced = apply_asked(read_model, made, request, planned)
    if isinstance(planned, FixedPlan):
        planned = planned.with_latency(reduced, chosen, level, request.batch)
    memory = memory_plan(reduced, chosen, level, request.batch)
    made = reduced.schedule
    if note := memory.note(chosen.title):
        made = replace(made, notes=(*made.notes, note))
    return PlanWithCost(made, cost_of(reduced), planned, level, memory)


def reduce(
    model: str | Path, *, target: str = "cpu", progress: Progress = silent, **asked: Unpack[Asked]
) -> Reduced:
    """Everything up to the reduced fp32 graph. Arguments and errors as `plan`."""
    request, chosen = Request.of(asked), load_target(target)
    read_model = read_asked(model, request)
    made, planned = planned_for(read_model, request, chosen, chosen.default_precision, progress)
    return apply_asked(read_model, made, request, planned)


def planned_in(
    model: Analysed, request: Request, target: Target, precision: str | None, say: Progress
) -> tuple[str, Schedule, PlanReport | FixedPlan]:
    """The precision that is asked for, or chosen, or the target's own; and `planned_for` in it."""
    if precision != AUTO_PRECISION:
        level = precision or target.default_precision
        target.check_precision(level)
        asked = without_images(request) if level in ON_IMAGES else request
        return level, *planned_for(model, asked, target, level, say)
    check_weighable(target, request)
    best, note = weigh_precisions(model, request, target, say)
    made = replace(best.schedule, notes=(*best.schedule.notes, note))
    return best.precision, made, replace(best.planned, schedule=made)


def weigh_precisions(
    model: Analysed, request: Request, target: Target, say: Progress
) -> tuple[InPrecision, str]:
    """The precision in which less is lost, or which is faster, its plan, and a note of why."""

    def plan_in(precision: str) -> tuple[Schedule, PlanReport | FixedPlan]:
        return planned_for(model, request, target, precision, say)

    return best_precision(model, request, target, plan_in, say)


def planned_for(
    model: Analysed, request: Request, target: Target, precision: str, say: Progress
) -> tuple[Schedule, PlanReport | FixedPlan]:
    """`schedule_for_request`, with the rules of restored outputs and of a smaller image."""
    level = target.planned_as(precision)
    made, planned = schedule_for_request(model, request, target, level, say)
    if solved := isinstance(planned, PlanReport):
        planned = planned.labelled(precision, level)
    else:
        made = with_position_rule(model, request, made, say)
    return with_rule(model, request, made, say, solved=solved), planned


def apply_asked(
    model: Analysed,
    schedule: Schedule,
    request: Request,
    planned: PlanReport | FixedPlan | None,
    dump: Dump | None = None,
) -> Reduced:
    """`apply_schedule`; what it says of a schedule that no person wrote is said of the method."""
    try:
        return apply_schedule(model, schedule, request.outputs, planned, dump)
    except UsageError as error:
        if request.schedule is not None or not error.where.startswith(("schedule", "--method")):
            raise
        hint = remedy(model, request.method, request.keep, request.outputs, planned=request.solved)
        where = f"--method {request.method}"
        raise UsageError(without_schedule(error), where=where, hint=hint) from error


def apply_schedule(
    model: Analysed,
    schedule: Schedule,
    outputs: str = "reduced",
    planned: PlanReport | FixedPlan | None = None,
    dump: Dump | None = None,
) -> Reduced:
    """The reduced graph of a schedule, with what leaves the model's other towers.

    Args:
        outputs: `reduced` or `restored`.
        planned: how the schedule was found, where it was.
        dump: takes the graph after each step and pass.

    Raises:
        UsageError: the schedule does not fit the model, or a site is illegal.
    """
    if schedule.resized is not None:
        return resized_model(model, schedule, outputs)
    full, normal = for_towers(model.analysis, schedule, outputs), model.normalized
    made, done = reduce_towers(
        model.graph,
        model.analysis,
        full,
        outputs=outputs,
        prefix=model.prefix,
        strict=full is schedule,
        dump=dump,
    )
    return Reduced(
        graph=made.graph,
        dense=normal.graph,
        schedule=with_towers(model, done, outputs, planned),
        fp32_nodes=made.fp32_nodes,
        written=made.written,
        metadata={**normal.metadata, **recorded(made.token_index), **recorded_choice(made.graph)},
        token_index=made.token_index,
        widened=normal.widened,
        quantized=bool(normal.quantized),
    )


def with_towers(
    model: Analysed, schedule: Schedule, outputs: str, planned: PlanReport | FixedPlan | None = None
) -> Schedule:
    """The schedule with what leaves the model's other towers, and notes of it."""
    full = for_towers(model.analysis, schedule, outputs)
    notes = [*model.normalized.notes, *tower_notes(full, model.analysis)]
    if isinstance(planned, PlanReport) and any(t.reductions for t in full.towers or ()):
        notes.append(
            f"the predicted latency has fewer tokens in tower '{full.tower}' alone: that "
            "of the others is as of the dense model"
        )
    return replace(full, notes=(*(n for n in full.notes if n not in notes), *notes))


def without_images(request: Request) -> Request:
    """The request without images that are the precision's alone: its method learns nothing from
    them."""
    if request.calibration is None or request.solved or request.schedule is not None:
        return request
    if request.outputs == "restored" or is_resolution(request.method):
        return request  # by rules that are weighed on images
    learns = parse_method(request.method)[0].scheduler.observes
    return request if learns else replace(request, calibration=None)
