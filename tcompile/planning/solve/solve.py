"""Solve a request by a profile: losses, tables, the solver, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress
from tcompile.methods.composition import parse_keep
from tcompile.methods.method import Method, method_for
from tcompile.passes.stages import Analysed
from tcompile.planning.losses import Drop
from tcompile.planning.method_schedule import site_constraints
from tcompile.planning.optimise import front, plateau_of
from tcompile.planning.request import Request
from tcompile.planning.solve.budgets import (
    Budget,
    MethodPlan,
    best_of_all,
    dense_plan_of,
    limits_of,
    next_step_down,
)
from tcompile.planning.solve.max_drop import fastest_within
from tcompile.planning.solve.method_tables import Losses, MethodTables, method_tables
from tcompile.planning.solve.plan_report import EPS, WORTH, PlanReport, Tried, prediction_note
from tcompile.planning.solve.reasons import budget_of, plateau_claim, solved_outcome
from tcompile.planning.solve.step_losses import PRIOR, images_for, losses_on, prior_of
from tcompile.planning.solve.trial import Trial
from tcompile.planning.solve.utility import accuracies, most_useful, pomt_plan, whole_latency
from tcompile.profiling.profile import Profile


def solve_request(
    model: Analysed, request: Request, methods: Sequence[Method], profile: Profile, say: Progress
) -> PlanReport:
    """The schedule of a request, by a profile.

    Raises:
        UsageError: no plan keeps to the budgets, or the profile is of another model.
    """
    budget, trial = _budget(model, request, profile), None
    losses: Callable[[Method], Losses] = prior_of
    if request.calibration is not None:
        say("reading the calibration images")
        fit, check = images_for(model.source, request)
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
    tokens = most_useful(option.tables, accuracies(random, trial)).tokens
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
