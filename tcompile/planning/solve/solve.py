"""The schedule of a request: the one given, a method's own, or one that is solved by a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_keep
from tcompile.methods.method import Method, method_for
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.losses.data import Calibration
from tcompile.planning.losses.drop import Drop
from tcompile.planning.method_schedule import checked_schedule, schedule_for
from tcompile.planning.optimise.solver import front
from tcompile.planning.optimise.tables import plateau_of
from tcompile.planning.request import AUTO, NO_METHOD, Request
from tcompile.planning.solve.budgets import (
    Budget,
    MethodPlan,
    best_of_all,
    dense_plan_of,
    limits_of,
    next_step_down,
)
from tcompile.planning.solve.latencies import profile_for
from tcompile.planning.solve.method_tables import (
    PRIOR,
    Losses,
    MethodTables,
    images_for,
    losses_on,
    method_tables,
    methods_for,
    prior_of,
)
from tcompile.planning.solve.on_images import (
    Trial,
    accuracies,
    check_enough,
    fastest_within,
    most_useful,
    pomt_plan,
    whole_latency,
)
from tcompile.planning.solve.plan_report import (
    EPS,
    WORTH,
    FixedPlan,
    PlanReport,
    Tried,
    budget_of,
    fixed_outcome,
    plateau_claim,
    prediction_note,
    solved_outcome,
)
from tcompile.profiling.profile import Profile
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
        own = schedule_for(model, request.keep, "topk", request.outputs, asked=AUTO)
        return _fixed_plan(model, request, own)
    images = _images(model, request, say)  # before minutes are spent on measuring
    profile = profile_for(model, methods, target, request, precision, say)
    report = solve_request(model, request, methods, profile, say, images)
    if report.schedule.dense and request.method == AUTO:
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
            model,
            request.keep,
            request.method,
            request.outputs,
            request.calibration,
            request.preprocess,
            image=request.resize,
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
    if made.dense and request.method == AUTO and request.schedule is None:
        made = replace(made, method=NO_METHOD)
    groups = site_constraints(model.analysis, request.outputs).groups
    outcome = fixed_outcome(request, made, groups, model.analysis.space.segments)
    return made, FixedPlan(outcome, budget_of(request))


def _images(
    model: Analysed, request: Request, say: Progress
) -> tuple[Calibration, Calibration] | None:
    """The calibration images of a request, to plan with and to check on; None: it has none.

    Raises:
        UsageError: they cannot be read, or cannot show what is asked.
    """
    if request.calibration is None:
        return None
    say("reading the calibration images")
    fit, check = images_for(model.source, request)
    if request.max_drop is not None:
        check_enough(model, check, request.max_drop, say)
    return fit, check


def solve_request(
    model: Analysed,
    request: Request,
    methods: Sequence[Method],
    profile: Profile,
    say: Progress,
    images: tuple[Calibration, Calibration] | None = None,
) -> PlanReport:
    """The schedule of a request, by a profile.

    Args:
        images: to plan with and to check on, where the request has any.

    Raises:
        UsageError: no plan keeps to the budgets, or the profile is of another model.
    """
    budget, trial = _budget(model, request, profile), None
    losses: Callable[[Method], Losses] = prior_of
    if images is not None:
        fit, check = images
        losses = partial(losses_on, model, request, fit, say)
        trial = Trial(model, check, request.outputs, say)
    if request.objective == "pomt":  # Its utility looks at no losses.
        words = f"{PRIOR}; the count was picked by accuracy on images"
        losses = partial(prior_of, words=words)
    eps = EPS[profile.kind]
    options = [
        method_tables(model.graph, m, profile, losses, least=budget.final, eps=eps) for m in methods
    ]
    say("solving")
    drop: Drop | None = None
    if request.objective == "pomt":
        assert trial is not None
        best = _by_utility(model, request, options[0], trial)
    elif request.max_drop is not None:
        assert trial is not None
        best, drop = fastest_within(options, budget, request.max_drop, trial)
    else:
        best, each = best_of_all(options, budget)
        return _report(request, best, each, profile, budget, drop)
    return _report(request, best, [best], profile, budget, drop)


def _budget(model: Analysed, request: Request, profile: Profile) -> Budget:
    """The request as limits of tokens and latency, for what a profile can tell."""
    shape, kind = model.analysis.shape, profile.kind
    final = None
    if request.keep is not None:
        final = math.ceil(parse_keep(request.keep) * shape.patches) + shape.prefix
    flat = request.objective == "pomt" or plateau_claim(profile)[0]
    return Budget(final, request.latency, EPS[kind] if flat else 0.0, WORTH[kind], request.exact)


def _by_utility(
    model: Analysed, request: Request, option: MethodTables, trial: Trial
) -> MethodPlan:
    """POMT's own choice of a count; `Request` lets it have no budgets."""
    constraints = site_constraints(model.analysis, request.outputs)
    text = f"random:seed={request.seed}"
    random = method_for(model.analysis, constraints, text, request.outputs)
    latency = whole_latency(option.tables)
    tokens = most_useful(option.tables.counts, latency, accuracies(random, trial))
    if tokens == option.tables.tokens:
        return dense_plan_of(option, "utility", "the utility is highest with all tokens")
    return MethodPlan(option, pomt_plan(option.tables, tokens))


def _report(
    request: Request,
    best: MethodPlan,
    each: Sequence[MethodPlan],
    profile: Profile,
    budget: Budget,
    drop: Drop | None,
) -> PlanReport:
    """All that is told of the best plan."""
    option, plan, kind = best.option, best.plan, profile.kind
    notes = []
    if kind == "modelled":
        notes.append("planned from a modelled profile, not from a measurement")
    if plan.steps and (note := prediction_note(kind, plan.latency_ms, plan.dense_ms)):
        notes.append(note + next_step_down(option, plan, budget.band))
    try:
        shown = front(option.tables, limits_of(option, budget))
    except UsageError:
        shown = ()
    return PlanReport(
        option.schedule(plan, notes),
        plan,
        profile.words,
        kind,
        option.words,
        solved_outcome(request, best, profile, budget),
        plateau_of(option.tables, plan, budget.eps),
        shown,
        tuple(Tried(c.option.method.text, c.plan.latency_ms, c.plan.loss) for c in each),
        drop,
        tuple(zip(option.tables.counts, map(float, whole_latency(option.tables)), strict=True)),
        budget_of(request),
    )
