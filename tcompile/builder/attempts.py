"""Attempts at one build: what was built and measured, what to ask next, which one to keep.

What is asked is what is built. Only a measurement of both models on the target puts the dense one
in its place, and says so first; `force` forbids that. Where a latency that was asked for is not
kept, and with `refine` wherever a prediction was off, it is corrected by what was measured, and
planned again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tcompile.artifact.manifest import Latency, Manifest, dense_and_reduced
from tcompile.planning.front import front_of
from tcompile.planning.solve.outcomes import budget_of, budget_words
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport, faster_precision
from tcompile.report.shown import NOTHING_SHOWN, Shown
from tcompile.targets.devices import ROUNDED

if TYPE_CHECKING:
    from tcompile.builder.job import Job
    from tcompile.passes.stages import Reduced
    from tcompile.planning.request import Request

#: Plans that are built and measured at most.
ATTEMPTS = 3


@dataclass(frozen=True)
class Attempt:
    """A model that was built and, where its runtime runs here, measured.

    Attributes:
        request: what was asked for it; None: the dense model, in place of what was asked.
        manifest: of it.
        chosen: what was asked and what is given; None as for `request`.
        dense_ms, ms: medians, of the dense model in the same precision; None where nothing was
            measured.
        shown: what its report shows beside the manifest.
        paced: whether that dense model is what the profile has too, so that it tells the machine's
            pace: not of a source that is quantised, nor of static int8 where parts are dynamic.
    """

    request: Request | None
    manifest: Manifest
    chosen: PlanReport | FixedPlan | None
    dense_ms: float | None = None
    ms: float | None = None
    paced: bool = True
    shown: Shown = NOTHING_SHOWN

    @property
    def planned(self) -> PlanReport | None:
        """Return how it was solved; None: it was not."""
        return self.chosen if isinstance(self.chosen, PlanReport) else None

    @property
    def reduced(self) -> bool:
        """Tell whether tokens leave it."""
        return self.manifest.reduced

    @property
    def slower(self) -> bool:
        """Tell whether it was measured, and not shown to be faster than dense."""
        return self.reduced and self.manifest.faster is False

    @property
    def off(self) -> float | None:
        """Return how far its share of the dense latency is from the predicted one; None: unknown.

        Shares, since a machine that is slower today than when it was profiled runs both slower.
        """
        if self.planned is None or self.ms is None or not self.dense_ms or not self.reduced:
            return None
        plan = self.planned.plan
        return (self.ms / self.dense_ms) / (plan.latency_ms / plan.dense_ms) - 1

    @property
    def both_ms(self) -> tuple[float, float]:
        """Return the lesser and the larger of what it took, and of what that is at the pace at
        which the machine was profiled, by the dense model that ran beside it.

        A machine that others use is slower by a third now and then. A plan is made tighter, or
        looser, only where both say so.
        """
        assert self.ms is not None
        if self.planned is None or not self.dense_ms or not self.paced:
            return self.ms, self.ms
        then = self.ms * self.planned.plan.dense_ms / self.dense_ms
        return min(self.ms, then), max(self.ms, then)


def on_target(
    chosen: PlanReport | FixedPlan | None, reduced: Reduced, job: Job
) -> tuple[PlanReport | FixedPlan | None, list[str]]:
    """A plan in the words of what was asked first, with modelled latency where it was not solved
    from a profile; and notes on that, and on other precisions of the target."""
    target, batch = job.target, job.request.batch
    notes = [job.why_precision] if job.why_precision else []
    if isinstance(chosen, PlanReport):
        # Planning again asks for another budget.
        outcome = replace(chosen.outcome, others=budget_words(job.request))
        others = (replace(plan, chosen=False) for plan in job.front)
        front = front_of([*others, *chosen.front])
        chosen = replace(chosen, outcome=outcome, budget=budget_of(job.request), front=front)
    if chosen is None or target.on_cpu:
        return chosen, notes
    if isinstance(chosen, FixedPlan):
        chosen = chosen.with_latency(reduced, target, job.precision, batch)
        if chosen.modelled is not None and not reduced.schedule.dense:
            notes.append(chosen.modelled.note())
    if job.precision != target.default_precision:
        notes.append(faster_precision(reduced.graph, target, job.precision, batch))
    return chosen, [note for note in notes if note]


def attempt_of(
    request: Request | None,
    manifest: Manifest,
    chosen: PlanReport | FixedPlan | None,
    job: Job,
    quantized: bool = False,
) -> Attempt:
    """Return what was built for a request: its manifest says how it was planned, too.

    Args:
        quantized: whether the source is.
    """
    dense_ms, ms = dense_and_reduced(manifest.latency)
    if not manifest.reduced and job.rounds and manifest.precision in ROUNDED:
        dense_ms = ms  # What ran beside it is the dense model in fp32.
    static = manifest.rival is not None and manifest.rival.kind == "static"
    paced = not quantized and (not static or job.target.runtime == "openvino")
    made = Attempt(request, manifest, chosen, dense_ms, ms, paced)
    return replace(made, manifest=_with_plan(made, job))


def _with_plan(made: Attempt, job: Job) -> Manifest:
    """The manifest with the plan, and with a note where the prediction was off."""
    if made.chosen is None:
        return made.manifest
    notes, manifest = list(made.manifest.notes), made.manifest.with_outcome(made.chosen.outcome)
    document: dict[str, Any] = made.chosen.to_json()
    latency = manifest.latency or _modelled(document, job)
    if not made.reduced:
        # There is one model; the second figure is of the dense one against itself, or rounded.
        name: Any = f"dense {manifest.precision}"
        other = [replace(f, model=name) for f in latency if f.model == "reduced"]
        latency = tuple(f for f in latency if f.model == "dense")
        latency += tuple(other if job.rounds and manifest.precision in ROUNDED else ())
    manifest = replace(manifest, latency=latency)
    planned = made.planned
    if planned is None:
        return replace(manifest, plan=document)
    off = made.off
    if off is not None:
        document["measured_off"] = off
        if abs(off) > planned.band:
            notes.append(
                f"measured {made.ms:.4g} of {made.dense_ms:.4g} ms where "
                f"{planned.plan.latency_ms:.4g} of {planned.plan.dense_ms:.4g} ms were predicted: "
                f"more than {planned.band:.0%} off ({planned.kind} profile)"
                + ("" if _planned_again(made, job) else "; --refine plans again from that")
            )
    budget = job.request.latency
    if budget is not None and made.ms is not None and made.ms > budget * (1 + planned.band):
        notes.append(
            f"measured {made.ms:.4g} ms, more than the {budget:.4g} ms asked for and the "
            f"band of {planned.band:.0%}; the dense model took {made.dense_ms:.4g} ms "
            f"where the profile has {planned.plan.dense_ms:.4g}" + _pace(made)
        )
        over = f"measured here it takes {made.ms:.4g} ms, more than the {budget:.4g} ms asked for"
        manifest = manifest.with_outcome(replace(made.chosen.outcome, remark=over))
    return replace(manifest, notes=tuple(notes), plan=document)


def _pace(made: Attempt) -> str:
    """What to do where the machine runs slower than when it was profiled; empty where it does not,
    by more than the band."""
    assert made.planned is not None
    slower = (made.dense_ms or 0.0) > made.planned.plan.dense_ms * (1 + made.planned.band)
    slower = slower and made.paced
    return (
        ": the machine is slower now; tcompile profile --fresh measures it again" if slower else ""
    )


def _modelled(document: Mapping[str, Any], job: Job) -> tuple[Latency, ...]:
    """The latency of both models by the roofline, where nothing runs here."""
    if document.get("latency_kind") != "modelled":
        return ()
    note = f"within {document['band']:.0%}, docs/roofline.md"
    both = ("dense", document["dense_ms"]), ("reduced", document["predicted_ms"])
    return tuple(
        Latency(
            which,  # type: ignore[arg-type]
            "modelled",
            ms,
            job.target.title,
            "roofline",
            job.request.batch,
            note=note,
        )
        for which, ms in both
    )


def next_request(made: Attempt, job: Job) -> Request | None:
    """The request to plan with next; None: nothing more is to be learned.

    A modelled profile gives way to a measured one. A budget of latency is scaled by how much longer
    than predicted the last plan took: always where it is not kept though the profile was measured,
    with `refine` also where there is room left. See `Attempt.both_ms`.
    """
    request = made.request
    if request is None or made.planned is None or made.ms is None:
        return None
    if not job.refine and not _late(made, job):
        return None
    if made.planned.kind == "modelled" and job.target.on_cpu:
        return replace(request, profile="measure")
    budget = job.request.latency
    if budget is None or request.latency is None or not made.reduced:
        return None
    least, most = made.both_ms
    if least > budget:
        took = least
    elif most < budget * (1 - made.planned.band):
        took = most
    else:
        return None
    return replace(request, latency=budget * made.planned.plan.latency_ms / took)


def _planned_again(made: Attempt, job: Job) -> bool:
    """Tell whether what was measured is planned from anyway, or was."""
    return job.refine or made.request != job.request or _late(made, job)


def _late(made: Attempt, job: Job) -> bool:
    """Tell whether a plan by a measured profile takes longer than asked, beyond its band."""
    budget, planned = job.request.latency, made.planned
    if budget is None or planned is None or made.ms is None or planned.kind != "measured":
        return False
    return made.both_ms[0] > budget * (1 + planned.band)


def better(new: Attempt, old: Attempt, budget: float | None) -> bool:
    """Decide whether to keep the new one: within the budget before over it; then the less loss."""
    if new.ms is None or old.ms is None:
        return True
    if budget is None:
        return new.ms < old.ms or old.slower
    over = [max(a.both_ms[0] - budget, 0.0) for a in (new, old)]
    if over[0] != over[1]:
        return over[0] < over[1]
    losses = [a.planned.plan.loss if a.planned else 0.0 for a in (new, old)]
    return losses[0] <= losses[1]


def _verdict(kept: Attempt) -> str:
    """Return how long the reduced model and the dense one took here, in words."""
    assert kept.ms is not None
    assert kept.dense_ms is not None
    verdict = "slower than" if kept.ms > kept.dense_ms else "not shown to be faster than"
    manifest = kept.manifest
    dense = "dense" if manifest.rival is None else f"dense {manifest.precision}"
    return f"measured {verdict} {dense} here, {kept.ms:.4g} ms against {kept.dense_ms:.4g} ms"


def kept_by_force(kept: Attempt) -> Manifest:
    """The manifest of a reduced model that is not faster, and that --force keeps."""
    assert kept.chosen is not None
    remark = f"the reduced model was {_verdict(kept)}; it is kept because of --force"
    return kept.manifest.with_outcome(replace(kept.chosen.outcome, remark=remark))


def dense_instead(kept: Attempt, dense: Manifest) -> Manifest:
    """The manifest of the dense model in place of one that was measured; says what that took."""
    assert kept.chosen is not None
    tried, outcome = kept.manifest.schedule, kept.chosen.outcome
    why = (
        f"the reduced model ({tried['method']}, {outcome.kept.patches} of {outcome.kept.of} patch "
        f"tokens) was {_verdict(kept)}; --force keeps it"
    )
    plan = {
        **(kept.manifest.plan or {}),
        "tried_schedule": {"schedule": tried, "dense_ms": kept.dense_ms, "ms": kept.ms},
    }
    latency = tuple(f for f in kept.manifest.latency if f.model == "dense" or f.rival)
    return replace(dense, plan=plan, latency=latency).with_outcome(outcome.dense_instead(why))
