"""From a request and a profile to a schedule: the planner."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.methods.composition import parse_keep
from tcompile.methods.context import SiteConstraints
from tcompile.methods.method import Method, method_for
from tcompile.passes.reduce import reduce_graph
from tcompile.planning.optimise import front, plateau_of
from tcompile.planning.request import AUTO, Request
from tcompile.planning.solve.budgets import (
    Budget,
    MethodPlan,
    best_of_all,
    dense_choice,
    limits_of,
    next_step_down,
)
from tcompile.planning.solve.candidates import MethodTables, candidate, methods_of
from tcompile.planning.solve.compose import schedule_of
from tcompile.planning.solve.max_drop import fastest_within
from tcompile.planning.solve.planned import WORTH, PlanReport, Tried, prediction_note
from tcompile.planning.solve.reasons import budget_of, plateau_claim, solved_outcome
from tcompile.planning.solve.sources import PRIOR, Images, images_for, losses_on, prior_of
from tcompile.planning.solve.utility import pomt_plan, utility_of, whole_latency
from tcompile.profiling.profile import Profile

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed

#: By kind of profile: latencies that count as one plateau, and the share by which a measurement may
#: differ from what was predicted (benchmarks/profiles.py, docs/roofline.md).
EPS = {"measured": 0.02, "modelled": 0.01}
BAND = {"measured": 0.1, "modelled": 0.3}


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """A request on a model.

    Attributes:
        model: analysed.
        room: where it lets tokens leave.
        request: what is asked.
    """

    model: Analysed
    room: SiteConstraints
    request: Request

    def methods(self) -> list[Method]:
        """What is to be planned; with images `auto` tries several.

        Raises as `candidates.methods_of`.
        """
        text = self.request.method
        if self.request.objective == "pomt" and text == AUTO:
            text = "pomt"
        several = self.request.calibration is not None and self.request.losses == "measured"
        return methods_of(
            self.model.analysis, self.room, text, self.request.outputs, several=several
        )


def solve_request(
    question: PlanningProblem, methods: Sequence[Method], profile: Profile, say: Progress
) -> PlanReport:
    """The schedule of a request, by a profile.

    Raises:
        UsageError: no plan keeps to the budgets, or the profile is of another model.
    """
    request, graph = question.request, question.model.graph
    shape, kind = question.model.analysis.shape, profile.kind
    final = None
    if request.keep is not None:
        final = math.ceil(parse_keep(request.keep) * shape.patches) + shape.prefix
    claims, _ = plateau_claim(profile)
    budget = Budget(
        final, request.latency, EPS[kind] if claims else 0.0, WORTH[kind], request.exact
    )
    images: Images | None = None
    losses: Callable[..., Any] = lambda method, counts: prior_of(method)  # noqa: E731
    if request.calibration is not None:
        say("reading the calibration images")
        images = images_for(question.model.source, request)
    if images is not None and request.objective != "pomt":  # Its utility looks at no losses.
        losses = losses_on(graph, question.model.source, request, images, say)
    candidates = [candidate(graph, m, profile, losses, least=final, eps=EPS[kind]) for m in methods]
    say("solving")
    if request.objective == "pomt":
        assert images is not None
        one = replace(candidates[0], words=f"{PRIOR}; the count was picked by accuracy on images")
        return _by_utility(question, one, profile, images, say)
    drop = None
    if request.max_drop is not None:
        assert images is not None
        best, drop = fastest_within(
            graph, candidates, budget, request.max_drop, images.check, request.outputs, say
        )
        each = [best]
    else:
        best, each = best_of_all(candidates, budget)
    answered = _answer(question, best, each, profile, budget)
    return answered if drop is None else replace(answered, drop=drop)


def _answer(
    question: PlanningProblem,
    best: MethodPlan,
    each: Sequence[MethodPlan],
    profile: Profile,
    budget: Budget,
) -> PlanReport:
    one, plan = best.candidate, best.plan
    outcome = solved_outcome(question.request, best, profile, budget, BAND[profile.kind])
    modelled = ["planned from a modelled profile, not from a measurement"]
    notes = [
        *(modelled if profile.kind == "modelled" else []),
        *(_prediction(best, profile, budget)),
    ]
    try:
        shown = front(one.tables, limits_of(one, budget))
    except UsageError:
        shown = ()
    totals = whole_latency(one.tables)
    return PlanReport(
        schedule_of(one.method, plan, notes),
        plan,
        profile.words,
        profile.kind,
        BAND[profile.kind],
        one.words,
        outcome,
        plateau_of(one.tables, plan, budget.eps),
        shown,
        tuple(Tried(c.candidate.method.text, c.plan.latency_ms, c.plan.loss) for c in each),
        curve=tuple(zip(one.tables.counts, map(float, totals), strict=True)),
        budget=budget_of(question.request),
    )


def _prediction(best: MethodPlan, profile: Profile, budget: Budget) -> list[str]:
    """A note where nothing is gained by the profile."""
    plan, kind = best.plan, profile.kind
    note = prediction_note(kind, plan.latency_ms, plan.dense_ms, BAND[kind]) if plan.steps else ""
    return [note + next_step_down(best.candidate, plan, budget.band)] if note else []


def _by_utility(
    question: PlanningProblem, one: MethodTables, profile: Profile, images: Images, say: Progress
) -> PlanReport:
    """POMT's own choice of a count; `Request` lets it have no budgets."""
    request, graph = question.request, question.model.graph
    random = method_for(
        question.model.analysis, question.room, f"random:seed={request.seed}", request.outputs
    )

    def run(schedule: Schedule | None) -> Any:
        from tcompile.core.save import save
        from tcompile.runtime.samples import run_all

        made = graph
        if schedule is not None:
            say(f"accuracy at {schedule.final} random tokens")
            made = reduce_graph(
                graph, question.model.analysis, schedule, outputs=request.outputs
            ).graph
        with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
            path = Path(folder) / "model.onnx"
            save(made, path)
            return run_all(path, images.check.samples)

    found = utility_of(one.tables, random, run, images.check.labels)
    tokens = found.choice.tokens
    budget = Budget(None, None, EPS[profile.kind], WORTH[profile.kind])
    if tokens == one.tables.tokens:
        choice = dense_choice(one, "utility", "the utility is highest with all tokens")
    else:
        choice = MethodPlan(one, pomt_plan(one, tokens))
    return _answer(question, choice, [choice], profile, budget)
