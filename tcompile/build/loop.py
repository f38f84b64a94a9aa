"""Closing the loop: what was built is measured against the dense model and the prediction.

What is asked is what is built. Only a measurement of both models on the target puts the dense one
in its place, and says so first; `force` forbids that. With `refine`, a prediction that was off is
corrected by what was measured, and planned again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.targets.backends.batch_sizes import BatchSizes
from tcompile.core.errors import UsageError
from tcompile.build.emit import fill
from tcompile.artifact.manifest import Latency, Manifest
from tcompile.core.model_files import Source

if TYPE_CHECKING:
    from tcompile.passes.lower.token_ops import TokenOpsChoice
    from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
    from tcompile.planning.request import Request
    from tcompile.passes.stages import Reduced
    from tcompile.targets import Target

#: A request → its reduced model and how it was planned; None → the dense model.
Make = Callable[["Request | None"], "tuple[Reduced, PlanReport | FixedPlan | None]"]
#: Plans that are built and measured at most.
_ATTEMPTS = 3
#: Seconds that both models are timed where milliseconds were promised.
_SECONDS = 3.0


@dataclass(frozen=True)
class Build:
    """What is built.

    Attributes:
        origin: the source file.
        target, precision: for what.
        request: what was asked.
        force: emit what is not faster than dense, too.
        refine: plan again from measurements.
        token_ops: the form of token ops; None: the target's own.
        batches: that an engine of a free batch takes.
        keep_failed: write what failed a check, too.
    """

    origin: Source
    target: Target
    precision: str
    request: Request
    force: bool
    refine: bool
    token_ops: TokenOpsChoice | None = None
    batches: BatchSizes | None = None
    keep_failed: bool = False


@dataclass(frozen=True)
class Attempt:
    """A model that was built and, where its runtime runs here, measured.

    Attributes:
        manifest: of it.
        planned: how it was solved; None: it was not.
        chosen: what was asked and what is given; None: the dense model that nobody asked for.
        dense_ms, ms: medians; None where nothing was measured.
    """

    manifest: Manifest
    planned: PlanReport | None
    chosen: PlanReport | FixedPlan | None
    dense_ms: float | None
    ms: float | None

    @staticmethod
    def of(manifest: Manifest, chosen: PlanReport | FixedPlan | None) -> Attempt:
        from tcompile.planning.solve.plan_report import PlanReport

        times = {f.model: f.milliseconds for f in manifest.latency if f.kind == "measured"}
        planned = chosen if isinstance(chosen, PlanReport) else None
        return Attempt(manifest, planned, chosen, times.get("dense"), times.get("reduced"))

    @property
    def reduced(self) -> bool:
        return bool(self.manifest.schedule["reductions"])

    @property
    def slower(self) -> bool:
        """Whether it was measured, and not shown to be faster than dense."""
        return self.reduced and self.manifest.faster is False

    @property
    def off(self) -> float | None:
        """How far its share of the dense latency is from the predicted one; None: unknown.

        Shares, since a machine that runs slower today than when it was profiled runs both so.
        """
        if self.planned is None or self.ms is None or not self.dense_ms or not self.reduced:
            return None
        plan = self.planned.plan
        return (self.ms / self.dense_ms) / (plan.latency_ms / plan.dense_ms) - 1


def fill_best(folder: Path, asked: Build, make: Make, say: Callable[[str], None]) -> Manifest:
    """Write the model that is to be kept into a folder; returns its manifest."""
    first = _attempt(folder, asked, asked.request, make, say)
    kept = _refined(folder, first, asked, make, say) if asked.refine else first
    if not kept.slower:
        return kept.manifest
    if asked.force:
        return _remarked(kept)
    say("the reduced model is not faster: emitting the dense one")
    return _dense_instead(kept, _attempt(folder, asked, None, make, say).manifest)


def _measured(kept: Attempt) -> str:
    """How long the reduced model and the dense one took here, in words."""
    assert kept.ms is not None
    assert kept.dense_ms is not None
    verdict = "slower than" if kept.ms > kept.dense_ms else "not shown to be faster than"
    return f"measured {verdict} dense here, {kept.ms:.4g} ms against {kept.dense_ms:.4g} ms"


def _remarked(kept: Attempt) -> Manifest:
    """The reduced model that --force keeps."""
    assert kept.chosen is not None
    remark = f"the reduced model was {_measured(kept)}; it is kept because of --force"
    return kept.manifest.with_outcome(replace(kept.chosen.outcome, remark=remark))


def _dense_instead(kept: Attempt, dense: Manifest) -> Manifest:
    """The dense model in place of one that was measured, and what that took."""
    assert kept.chosen is not None
    tried, outcome = kept.manifest.schedule, kept.chosen.outcome
    why = (
        f"the reduced model ({tried['method']}, {outcome.kept.patches} of {outcome.kept.of} patch "
        f"tokens) was {_measured(kept)}; --force keeps it"
    )
    plan = {
        **(kept.manifest.plan or {}),
        "tried_schedule": {"schedule": tried, "dense_ms": kept.dense_ms, "ms": kept.ms},
    }
    latency = tuple(f for f in kept.manifest.latency if f.model == "dense")
    return replace(dense, plan=plan, latency=latency).with_outcome(outcome.dense_instead(why))


def _attempt(
    folder: Path, asked: Build, request: Request | None, make: Make, say: Callable[[str], None]
) -> Attempt:
    """Build what a request asks for, in place of what is in the folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    reduced, chosen = make(request)
    notes: list[str] = []
    if chosen is not None:
        chosen, notes = _on_target(_as_asked(chosen, asked.request), reduced, asked)
    # Handed over in a list, so that the weights are gone before anything is measured.
    held = [reduced]
    del reduced
    manifest = fill(folder, asked.origin, asked.target, asked.precision, held,
                    asked.request.outputs, say, threads=asked.request.threads,
                    batch=asked.request.batch, batches=asked.batches, token_ops=asked.token_ops,
                    keep_failed=asked.keep_failed,
                    seconds=0.0 if asked.request.latency is None else _SECONDS)
    made = Attempt.of(replace(manifest, notes=(*notes, *manifest.notes)), chosen)
    return replace(made, manifest=_with_plan(made, asked))


def _as_asked(chosen: PlanReport | FixedPlan, request: Request) -> PlanReport | FixedPlan:
    """In the words of what was asked first, where planning again asked for another budget."""
    from tcompile.planning.solve.plan_report import PlanReport
    from tcompile.planning.solve.reasons import budget_of, budget_words

    if not isinstance(chosen, PlanReport):
        return chosen
    outcome = replace(chosen.outcome, others=budget_words(request))
    return replace(chosen, outcome=outcome, budget=budget_of(request))


def _on_target(
    chosen: PlanReport | FixedPlan, reduced: Reduced, asked: Build
) -> tuple[PlanReport | FixedPlan, list[str]]:
    """With modelled latency where no profile was planned with; and whether another precision of the
    target is faster."""
    from tcompile.planning.solve.plan_report import FixedPlan, faster_precision

    target, batch = asked.target, asked.request.batch
    notes: list[str] = []
    if target.runtime == "onnxruntime":
        return chosen, notes
    if isinstance(chosen, FixedPlan):
        chosen = chosen.with_latency(reduced, target, asked.precision, batch)
        if chosen.modelled is not None and reduced.schedule.reductions:
            notes.append(chosen.modelled.note())
    if asked.precision != target.default_precision:
        notes.append(faster_precision(reduced.graph, target, asked.precision, batch))
    return chosen, [note for note in notes if note]


def _with_plan(made: Attempt, asked: Build) -> Manifest:
    """The manifest with the plan, and with a note where the prediction was off."""
    if made.chosen is None:
        return made.manifest
    notes, manifest = list(made.manifest.notes), made.manifest.with_outcome(made.chosen.outcome)
    document: dict[str, Any] = made.chosen.to_json()
    document.pop("front", None)
    if not manifest.latency:
        manifest = replace(manifest, latency=_modelled(made.chosen, asked))
    if not made.reduced:
        # There is one model; the second figure is of the dense one against itself.
        manifest = replace(manifest, latency=tuple(f for f in manifest.latency
                                                   if f.model == "dense"))
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
                + ("" if asked.refine else "; --refine plans again from that")
            )
    budget = asked.request.latency
    if budget is not None and made.ms is not None and made.ms > budget * (1 + planned.band):
        notes.append(f"measured {made.ms:.4g} ms, more than the {budget:.4g} ms asked for and the "
                     f"band of {planned.band:.0%}; the dense model took {made.dense_ms:.4g} ms "
                     f"where the profile has {planned.plan.dense_ms:.4g}")
        over = f"measured here it takes {made.ms:.4g} ms, more than the {budget:.4g} ms asked for"
        manifest = manifest.with_outcome(replace(made.chosen.outcome, remark=over))
    return replace(manifest, notes=tuple(notes), plan=document)


def _modelled(chosen: PlanReport | FixedPlan, asked: Build) -> tuple[Latency, ...]:
    """What the roofline has of both models, where nothing runs here."""
    document, target, batch = chosen.to_json(), asked.target, asked.request.batch
    if document.get("latency_kind") != "modelled":
        return ()
    note = f"within {document['band']:.0%}, docs/roofline.md"
    both = ("dense", document["dense_ms"]), ("reduced", document["predicted_ms"])
    return tuple(
        Latency(which, "modelled", ms, target.title, "roofline", batch, note=note)  # type: ignore[arg-type]
        for which, ms in both
    )


def _refined(
    folder: Path, first: Attempt, asked: Build, make: Make, say: Callable[[str], None]
) -> Attempt:
    """The attempt that is to be kept after planning again.

    A modelled profile gives way to a measured one. A budget of latency is scaled by how much longer
    than predicted the last plan took. Where the last attempt was the worse one, the one before is
    built again.
    """
    request, made = asked.request, first
    best, best_request = first, request
    for number in range(1, _ATTEMPTS):
        changed = _corrected(request, made, asked)
        if changed is None:
            break
        say(f"planning again, attempt {number + 1} of {_ATTEMPTS}")
        request = changed
        try:
            again = _attempt(folder, asked, request, make, say)
        except UsageError:
            return _attempt(folder, asked, best_request, make, say)
        same = again.manifest.schedule == made.manifest.schedule
        made = again
        if same or _better(again, best, asked.request.latency):
            best, best_request = again, request
        if same:
            break
    return best if best is made else _attempt(folder, asked, best_request, make, say)


def _corrected(request: Request, made: Attempt, asked: Build) -> Request | None:
    """What to ask next; None: nothing more is to be learned."""
    if made.planned is None or made.ms is None:
        return None
    if made.planned.kind == "modelled" and asked.target.runtime == "onnxruntime":
        return replace(request, profile="measure")
    budget = asked.request.latency
    if budget is None or request.latency is None or not made.reduced:
        return None
    ratio = made.ms / made.planned.plan.latency_ms
    if made.ms <= budget and made.ms >= budget * (1 - made.planned.band):
        return None
    return replace(request, latency=budget / ratio)


def _better(new: Attempt, old: Attempt, budget: float | None) -> bool:
    """Whether to keep the new one: within the budget before over it; then the less loss."""
    if new.ms is None or old.ms is None:
        return True
    if budget is None:
        return new.ms < old.ms or old.slower
    over = [max(a.ms - budget, 0.0) for a in (new, old) if a.ms is not None]
    if over[0] != over[1]:
        return over[0] < over[1]
    losses = [a.planned.plan.loss if a.planned else 0.0 for a in (new, old)]
    return losses[0] <= losses[1]
