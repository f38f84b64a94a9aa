"""Closing the loop: what was built is measured against the dense model and the prediction.

What is not faster than dense is not emitted, unless forced. With `refine`, a prediction that was
off is corrected by what was measured, and planned again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.errors import UsageError
from tcompile.filling import fill
from tcompile.manifest import Latency, Manifest, Source

if TYPE_CHECKING:
    from tcompile.passes.lower.token_ops import TokenOpsChoice
    from tcompile.planning.solve.planned import Planned
    from tcompile.request import Request
    from tcompile.stages import Reduced
    from tcompile.targets import Target

#: A request → its reduced model and how it was planned; None → the dense model.
Make = Callable[["Request | None"], "tuple[Reduced, Planned | None]"]
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
        keep_failed: write what failed a check, too.
    """

    origin: Source
    target: Target
    precision: str
    request: Request
    force: bool
    refine: bool
    token_ops: TokenOpsChoice | None = None
    keep_failed: bool = False


@dataclass(frozen=True)
class Attempt:
    """A model that was built and, where its runtime runs here, measured.

    Attributes:
        manifest: of it.
        planned: how it was planned, or None.
        dense_ms, ms: medians; None where nothing was measured.
    """

    manifest: Manifest
    planned: Planned | None
    dense_ms: float | None
    ms: float | None

    @staticmethod
    def of(manifest: Manifest, planned: Planned | None) -> Attempt:
        times = {f.model: f.milliseconds for f in manifest.latency if f.kind == "measured"}
        return Attempt(manifest, planned, times.get("dense"), times.get("reduced"))

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
    if kept.slower and not asked.force:
        assert kept.ms is not None
        assert kept.dense_ms is not None
        why = (
            f"not shown to be faster than dense here: {kept.ms:.4g} ms against "
            f"{kept.dense_ms:.4g} ms measured; this is the dense model (--force emits the reduced "
            "one)"
        )
        say("the reduced model is not faster: emitting the dense one")
        dense = _attempt(folder, asked, None, make, say).manifest
        tried = {"schedule": kept.manifest.schedule, "dense_ms": kept.dense_ms, "ms": kept.ms}
        plan = {**(kept.manifest.plan or {}), "declined": why, "tried_schedule": tried}
        return replace(dense, notes=(why, *dense.notes), plan=plan)
    return kept.manifest


def _attempt(
    folder: Path, asked: Build, request: Request | None, make: Make, say: Callable[[str], None]
) -> Attempt:
    """Build what a request asks for, in place of what is in the folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    reduced, planned = make(request)
    # Handed over in a list, so that the weights are gone before anything is measured.
    held = [reduced]
    del reduced
    manifest = fill(folder, asked.origin, asked.target, asked.precision, held,
                    asked.request.outputs, say, threads=asked.request.threads,
                    batch=asked.request.batch, token_ops=asked.token_ops,
                    keep_failed=asked.keep_failed,
                    seconds=0.0 if asked.request.latency is None else _SECONDS)  # fmt: skip
    made = Attempt.of(manifest, planned)
    return replace(made, manifest=_with_plan(made, asked))


def _with_plan(made: Attempt, asked: Build) -> Manifest:
    """The manifest with the plan, and with a note where the prediction was off."""
    if made.planned is None:
        return made.manifest
    planned, notes = made.planned, list(made.manifest.notes)
    document: dict[str, Any] = planned.to_json()
    document.pop("front")
    manifest = made.manifest
    if not manifest.latency and planned.kind == "modelled":
        manifest = replace(manifest, latency=_modelled(planned, asked))
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
                     f"where the profile has {planned.plan.dense_ms:.4g}")  # fmt: skip
    return replace(manifest, notes=tuple(notes), plan=document)


def _modelled(planned: Planned, asked: Build) -> tuple[Latency, ...]:
    """What the roofline has of both models, where nothing runs here."""
    plan, target = planned.plan, asked.target
    note = f"within {planned.band:.0%}, docs/roofline.md"
    batch = asked.request.batch
    return (
        Latency("dense", "modelled", plan.dense_ms, target.title, "roofline", batch, note=note),
        Latency("reduced", "modelled", plan.latency_ms, target.title, "roofline", batch, note=note),
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
