"""The schedule of a request: the one given, a method's own, or one that is solved by a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_keep
from tcompile.methods.method import Method, method_for
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.front import DENSE, FrontPlan, front_of
from tcompile.planning.losses.drop import Drop
from tcompile.planning.method_schedule import checked_schedule, schedule_for
from tcompile.planning.optimise.solver import front
from tcompile.planning.optimise.tables import plateau_of
from tcompile.planning.options.budgets import (
    Budget,
    MethodPlan,
    best_of_all,
    dense_plan_of,
    limits_of,
    next_step_down,
)
from tcompile.planning.options.method_tables import (
    PRIOR,
    Losses,
    MethodTables,
    losses_on,
    method_tables,
    methods_for,
    prior_of,
    tables_on_one_grid,
)
from tcompile.planning.request import AUTO, NO_IMAGES, NO_METHOD, Request
from tcompile.planning.search.evidence import Evidence, Runs, evidence_for
from tcompile.planning.search.plans import PlansByLatency, searched
from tcompile.planning.search.screen import screened
from tcompile.planning.solve.latencies import dense_elsewhere, profile_for
from tcompile.planning.solve.on_images import (
    Rounding,
    Trial,
    accuracies,
    by_loss,
    check_enough,
    fastest_within,
    most_useful,
    pomt_plan,
    whole_latency,
)
from tcompile.planning.solve.outcomes import budget_of, fixed_outcome, plateau_claim, solved_outcome
from tcompile.planning.solve.plan_report import (
    EPS,
    WORTH,
    FixedPlan,
    PlanReport,
    Tried,
    prediction_note,
)
from tcompile.profiling.profile import Profile, read_profile
from tcompile.targets import Target, load_target

#: The losses of a request without images.
_UNSEEN = f"{PRIOR}, without images (--calibration)"


def schedule_for_request(
    model: Analysed, request: Request, target: Target, precision: str, say: Progress = silent
) -> tuple[Schedule, PlanReport | FixedPlan]:
    """The schedule to follow, how it was solved or whose it is, and why it keeps what it keeps.

    What is asked → the methods it is asked of → those that lose least at first sight → a profile of
    them → whole schedules on images, or tables and the solver → the report (`solve_request`).

    Raises:
        UsageError: no budget or two, no plan within them, an illegal site, a schedule for another
            model.
    """
    fixed = _fixed_schedule(model, request)
    if fixed is not None:
        return _fixed_plan(model, request, fixed)
    _check_drop(request, target, precision)
    evidence = _evidence(model, request, say)
    try:
        methods = methods_for(model, request, calibrated=evidence is not None)
    except UsageError:
        if request.method != AUTO or request.keep is None:
            raise
        # What topk says of the model is more to the point than that nothing can be planned.
        own = schedule_for(model, request.keep, "topk", request.outputs, asked=AUTO)
        return _fixed_plan(model, request, own)
    runs: Runs | None = None
    if evidence is not None and request.losses == "measured" and request.objective != "pomt":
        runs = Runs(model, request, evidence, say)
        if request.calibration is None and (why := runs.problem()):
            return _without_images(model, request, target, precision, why, say)
        known = _known_to(request.profile, methods)
        methods = screened(known, runs, _final(model, request))  # before any of them is timed
    profile = profile_for(model, methods, target, request, precision, say)
    report = solve_request(model, request, methods, profile, say, evidence, runs)
    report = _with_rivals(report, dense_elsewhere(model, target, request, precision))
    if report.schedule.dense and request.method == AUTO:
        report = replace(report, schedule=replace(report.schedule, method=NO_METHOD))
    return report.schedule, report


def _without_images(
    model: Analysed, request: Request, target: Target, precision: str, why: str, say: Progress
) -> tuple[Schedule, PlanReport | FixedPlan]:
    """The schedule by a prior, where the model cannot be judged on scenes that nobody asked for."""
    unseen = replace(request, calibration=NO_IMAGES)
    made, planned = schedule_for_request(model, unseen, target, precision, say)
    note = f"no schedule was run on procedural scenes: {why}; give images, --calibration"
    made = replace(made, notes=(*made.notes, note))
    return made, planned if isinstance(planned, FixedPlan) else replace(planned, schedule=made)


def _evidence(model: Analysed, request: Request, say: Progress) -> Evidence | None:
    """The images of a request; None: it has none.

    Raises:
        UsageError: they cannot be read, or cannot show what is asked.
    """
    if request.calibration not in (None, NO_IMAGES):
        say("reading the calibration images")
    found = evidence_for(model, request)
    if request.max_drop is not None:
        assert found is not None
        assert found.check is not None  # `Request` demands a person's own
        check_enough(model, found.check, request.max_drop, say)
    return found


def _known_to(profile: object, methods: list[Method]) -> list[Method]:
    """The methods that a profile which was given has steps of; all, where it has none."""
    given = profile if isinstance(profile, Profile) else None
    if isinstance(profile, str | Path) and profile not in ("measure", "model"):
        given = read_profile(profile)
    if given is None:
        return methods
    return [m for m in methods if m.key in given.reducers] or methods


def _final(model: Analysed, request: Request) -> int | None:
    """Whole tokens that are asked to be left."""
    if request.keep is None:
        return None
    shape = model.analysis.shape
    return math.ceil(parse_keep(request.keep) * shape.patches) + shape.prefix


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


def solve_request(
    model: Analysed,
    request: Request,
    methods: Sequence[Method],
    profile: Profile,
    say: Progress,
    evidence: Evidence | None = None,
    runs: Runs | None = None,
) -> PlanReport:
    """The schedule of a request, by a profile.

    Args:
        evidence: images to plan with and to check on, where the request has any.
        runs: whole schedules on them; None: losses are those of a table.

    Raises:
        UsageError: no plan keeps to the budgets, or the profile is of another model.
    """
    budget = _budget(model, request, profile)
    if runs is not None:
        assert evidence is not None
        return _searched(model, request, methods, profile, budget, evidence, runs)
    trial: Trial | None = None
    losses: Callable[[Method], Losses] = partial(prior_of, words=_UNSEEN)
    if evidence is not None:
        losses = partial(losses_on, evidence.fit, model.graph, say)
        if evidence.check is not None:
            trial = Trial(model, evidence.check, request.outputs, say, _rounding(profile))
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
        best, drop = fastest_within(
            by_loss(options, budget), options[0], budget, request.max_drop, trial
        )
    else:
        best, each = best_of_all(options, budget)
        return _report(request, best, each, profile, budget, drop)
    return _report(request, best, [best], profile, budget, drop)


def _rounding(profile: Profile) -> Rounding | None:
    """How a model that a profile is of is run on a CPU, where that is not fp32."""
    if not profile.rounded:
        return None
    return Rounding(load_target(profile.conditions.target), profile.conditions.precision)


def _check_drop(request: Request, target: Target, precision: str) -> None:
    """Raise UsageError for a drop of 8 bits whose ranges are taken from other images when the model
    is built: all but ONNX Runtime's, where they are looked up."""
    if request.max_drop is None or target.runtime == "onnxruntime" or precision != "int8":
        return
    cpu = target.runtime == "openvino"
    raise UsageError(
        f"a drop cannot be shown of {'OpenVINO' if cpu else 'TensorRT'}'s 8 bits: ranges of the "
        "model that ships are taken from other images than those of the plan",
        where="--max-drop",
        hint="--precision bf16 or fp32, or --runtime onnxruntime" if cpu else "--precision mixed",
    )


def _searched(
    model: Analysed,
    request: Request,
    methods: Sequence[Method],
    profile: Profile,
    budget: Budget,
    evidence: Evidence,
    runs: Runs,
) -> PlanReport:
    """The schedule that loses least on images, within the budgets."""
    options = tables_on_one_grid(model.graph, methods, profile, least=budget.final, eps=budget.eps)
    try:
        if request.max_drop is None:
            found = searched(options, budget, runs)
            report = _report(
                request, found.best, found.each, profile, budget, None, found.seen, runs
            )
            notes = (*report.schedule.notes, *found.notes, *runs.left_out())
            made = replace(report.schedule, notes=notes)
            return replace(report, schedule=made, calibration=runs.to_json())
        assert evidence.check is not None
        trial = Trial(model, evidence.check, request.outputs, runs.say, _rounding(profile))
        plans = PlansByLatency(options, budget, runs)
        best, drop = fastest_within(plans, options[0], budget, request.max_drop, trial)
    finally:
        runs.save()
    report = _report(request, best, [best], profile, budget, drop, plans.seen, runs)
    return replace(report, calibration=runs.to_json())


def _budget(model: Analysed, request: Request, profile: Profile) -> Budget:
    """The request as limits of tokens and latency, for what a profile can tell."""
    kind, final = profile.kind, _final(model, request)
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
    seen: Sequence[MethodPlan] | None = None,
    runs: Runs | None = None,
) -> PlanReport:
    """All that is told of the best plan.

    Args:
        seen: plans that were run on images; None: those of the front are solved for.
        runs: on which.
    """
    option, plan, kind = best.option, best.plan, profile.kind
    notes = []
    if kind == "modelled":
        notes.append("planned from a modelled profile, not from a measurement")
    if plan.steps and (note := prediction_note(kind, plan.latency_ms, plan.dense_ms)):
        notes.append(note + next_step_down(option, plan, budget.band))
    if seen is None:
        try:
            seen = [MethodPlan(option, p) for p in front(option.tables, limits_of(option, budget))]
        except UsageError:
            seen = ()
    return PlanReport(
        best.schedule(notes),
        plan,
        profile.words,
        kind,
        option.words,
        solved_outcome(request, best, profile, budget),
        plateau_of(option.tables, plan, budget.eps),
        _front(best, seen, profile, runs),
        tuple(Tried(c.method, c.plan.latency_ms, c.plan.loss) for c in each),
        drop,
        tuple(zip(option.tables.counts, map(float, whole_latency(option.tables)), strict=True)),
        budget_of(request),
    )


def _with_rivals(report: PlanReport, ms: Mapping[str, float]) -> PlanReport:
    """The report with the dense model in other precisions, by ms in each."""
    shape = report.schedule.model
    rivals = [
        FrontPlan(p, DENSE, shape.patches, took, 0.0 if p == "fp32" else None)
        for p, took in ms.items()
    ]
    return replace(report, front=front_of([*report.front, *rivals]))


def _front(
    best: MethodPlan, seen: Sequence[MethodPlan], profile: Profile, runs: Runs | None
) -> tuple[FrontPlan, ...]:
    """The plans that were looked at and the dense model, by latency and loss."""
    precision, tables = profile.conditions.precision, best.option.tables
    images, seen_in = (None, None) if runs is None else (len(runs.samples), "fp32")

    def point(one: MethodPlan) -> FrontPlan:
        plan = one.plan
        if not (plan.steps or one.resized):
            loss = 0.0 if precision == "fp32" else None
            return FrontPlan(precision, DENSE, tables.tokens - tables.prefix, plan.dense_ms, loss)
        patches, ms = plan.final - tables.prefix, plan.latency_ms
        return FrontPlan(precision, one.method, patches, ms, plan.loss, seen_in, images)

    chosen = replace(point(best), chosen=True)
    return front_of([chosen, *map(point, seen), point(dense_plan_of(best.option, "budget", ""))])
