"""Reports on a schedule: how it was solved or whose it is, its latency and its cost, and why it
keeps as many tokens as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.core.decode import encode
from tcompile.core.errors import TcompileError
from tcompile.core.schedule import Schedule
from tcompile.passes.stages import Reduced
from tcompile.planning.cost import Cost
from tcompile.planning.front import FrontPlan
from tcompile.planning.losses.drop import Drop
from tcompile.planning.memory import Memory
from tcompile.planning.optimise.tables import Plan
from tcompile.planning.options.outcome import Outcome
from tcompile.profiling.plateaus import Plateau
from tcompile.targets import Target
from tcompile.targets.devices import ROUNDED

#: By kind of profile: latencies that count as one plateau; the share by which a measurement may
#: differ from what was predicted (benchmarks/profiles.py, docs/roofline.md); and the share of the
#: dense latency below which a predicted saving says nothing.
EPS = {"measured": 0.02, "modelled": 0.01}
BAND = {"measured": 0.1, "modelled": 0.3}
WORTH = {"measured": 0.02, "modelled": 0.05}


@dataclass(frozen=True)
class Tried:
    """A method that was weighed against others: what its best plan would take and lose."""

    method: str
    latency_ms: float
    loss: float


@dataclass(frozen=True, eq=False)
class PlanReport:
    """A schedule that was solved, and why it is this one.

    Attributes:
        schedule: what to build.
        plan: sites, counts, predicted latency and loss, and those of the dense model.
        profile: where latencies come from, in words; `kind` is `measured` or `modelled`.
        losses: where losses come from, and their unit.
        outcome: what was asked, what is given, and why.
        plateaus: of each step's count.
        front: plans that were looked at, of which no other is both faster and loses less, and the
            dense model in each precision; none where nothing was weighed.
        tried: all methods that were weighed.
        drop: what was lost on images that nothing was planned with.
        curve: (tokens, ms) of the whole model if it carried so many from the first block on.
        budget: what was asked, by name.
        calibration: the images that schedules were run on, and how many schedules at which level;
            None where none was run.
    """

    schedule: Schedule
    plan: Plan
    profile: str
    kind: str
    losses: str
    outcome: Outcome
    plateaus: tuple[Plateau, ...] = ()
    front: tuple[FrontPlan, ...] = ()
    tried: tuple[Tried, ...] = ()
    drop: Drop | None = None
    curve: tuple[tuple[int, float], ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None

    @property
    def band(self) -> float:
        """The share by which a measurement may differ from the prediction."""
        return BAND[self.kind]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "latency_kind": self.kind,
            "profile": self.profile,
            "band": self.band,
            "losses": self.losses,
            "calibration": None if self.calibration is None else dict(self.calibration),
            "budget": dict(self.budget),
            "predicted_ms": self.plan.latency_ms,
            "dense_ms": self.plan.dense_ms,
            "loss": self.plan.loss,
            "gap": self.plan.gap,
            "steps": [
                {**vars(step), "plateau": [p.first, p.last]}
                for step, p in zip(self.plan.steps, self.plateaus, strict=True)
            ],
            "drop": None if self.drop is None else asdict(self.drop),
            "tried": [vars(t).copy() for t in self.tried],
            "front": list(encode(self.front)),
            "curve": _thinned(self.curve),
        }

    def labelled(self, precision: str, planned_as: str) -> PlanReport:
        """A copy whose plans are of the precision that is built, where it is planned as another.

        Args:
            planned_as: that one.
        """
        named = (
            replace(p, precision=precision) if p.precision == planned_as else p for p in self.front
        )
        return replace(self, front=tuple(named))

    def lines(self) -> list[str]:
        """Lines for people."""
        plan = self.plan
        said = [
            _latency_line(self.kind, plan.latency_ms, plan.dense_ms, self.profile),
            f"loss: {plan.loss:.4g}; {self.losses}",
        ]
        if self.drop is not None:
            d = self.drop
            said.append(
                f"{d.what}: {d.mean:.2%} on {d.images} images that nothing was planned with, "
                f"at most {d.upper:.2%} with {d.confidence:.0%} confidence"
            )
        if len(self.tried) > 1:
            each = (f"{t.method} {t.latency_ms:.4g} ms, loss {t.loss:.3g}" for t in self.tried)
            said.append("methods weighed: " + "; ".join(each))
        return said

    def rows(self) -> Sequence[tuple[str, int, int, str]]:
        """(site, before, after, plateau) of each step, prefix included."""
        return [
            (s.site, s.before, s.after, f"{p.first} to {p.last}: {p.ms:.4g} ms behind it")
            for s, p in zip(self.plan.steps, self.plateaus, strict=True)
        ]


@dataclass(frozen=True)
class Modelled:
    """Latency of a whole model by the roofline, dense and reduced, in ms of one batch; `profile`
    says of what device."""

    dense_ms: float
    ms: float
    profile: str

    def note(self) -> str:
        """A note where nothing is gained by the model; empty for none."""
        return prediction_note("modelled", self.ms, self.dense_ms)


@dataclass(frozen=True)
class FixedPlan:
    """A schedule that was not solved: a method's own, or one that was given.

    Attributes:
        outcome: what was asked, what is given, and why.
        budget: what was asked, by name.
        modelled: its latency on a GPU; None where it was not modelled.
    """

    outcome: Outcome
    budget: Mapping[str, Any] = field(default_factory=dict)
    modelled: Modelled | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, by the names that a solved schedule has for them."""
        m = self.modelled
        if m is None:
            return {"budget": dict(self.budget)}
        return {
            "budget": dict(self.budget),
            "latency_kind": "modelled",
            "profile": m.profile,
            "band": BAND["modelled"],
            "predicted_ms": m.ms,
            "dense_ms": m.dense_ms,
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        m = self.modelled
        if m is None:
            return []
        said = [f"note: {m.note()}"] if m.note() else []
        return [*said, _latency_line("modelled", m.ms, m.dense_ms, m.profile)]

    def with_latency(
        self, reduced: Reduced, target: Target, precision: str, batch: int
    ) -> FixedPlan:
        """Add the roofline's latency of both models; not on a CPU, which is measured."""
        ms = whole_ms(reduced.graph, target, precision, batch)
        dense = whole_ms(reduced.dense, target, precision, batch)
        if ms is None or dense is None:
            return self
        words = f"modelled, {target.title}, by the roofline, batch {batch}, {precision}"
        return replace(self, modelled=Modelled(dense, ms, words))


@dataclass(frozen=True)
class PlanWithCost:
    """A schedule and what following it costs.

    Attributes:
        schedule, cost: both.
        chosen: how the schedule was solved, or whose it is; what was asked, what is kept, and why.
        precision: that it is for.
        memory: that it needs.
    """

    schedule: Schedule
    cost: Cost
    chosen: PlanReport | FixedPlan
    precision: str
    memory: Memory

    @property
    def planned(self) -> PlanReport | None:
        """The report of a solved schedule; None where a method's own or a given one is followed."""
        return self.chosen if isinstance(self.chosen, PlanReport) else None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.chosen.outcome.to_json(),
            **self.schedule.to_json(),
            "precision": self.precision,
            "cost": self.cost.to_json(),
            "memory": encode(self.memory),
            "plan": self.chosen.to_json(),
        }


#: Points of a curve in JSON, at most.
_POINTS = 65


def _thinned(curve: Sequence[tuple[int, float]]) -> list[list[float]]:
    """Some points of a curve, from the first to the last, as lists."""
    stride = max(1, -(-(len(curve) - 1) // (_POINTS - 1)))
    kept = [*curve[:-1:stride], *curve[-1:]]
    return [[count, ms] for count, ms in kept]


def prediction_note(kind: str, ms: float, dense_ms: float) -> str:
    """A note that a prediction sees nothing to gain; empty where it does. What is built does not
    depend on it.

    Args:
        kind: `measured` or `modelled`, of the profile.
    """
    if ms < dense_ms * (1 - WORTH[kind]):
        return ""
    whose = "the model's error" if kind == "modelled" else "what a profile can tell"
    near = abs(ms - dense_ms) <= BAND[kind] * dense_ms
    verdict = f"within {whose}" if near else f"slower by more than {whose}, {BAND[kind]:.0%}"
    return (
        f"a {kind} profile predicts {ms:.4g} ms reduced, {dense_ms:.4g} ms dense: {verdict}; "
        "measure on the device"
    )


def whole_ms(graph: gs.Graph, target: Target, precision: str, batch: int) -> float | None:
    """ms of one batch by the roofline; None on a CPU, and where figures are missing."""
    if target.on_cpu:
        return None
    from tcompile.profiling.roofline import device_of, modelled

    precision = target.planned_as(precision)
    try:
        return modelled(graph, device_of(target, precision), precision=precision, batch=batch).ms
    except TcompileError:
        return None


def faster_precision(graph: gs.Graph, target: Target, precision: str, batch: int) -> str:
    """A note that another precision of the target is modelled to be faster, of those that lose next
    to nothing; empty for none."""
    near = (p for p in target.precisions if p not in ROUNDED)
    found = {p: whole_ms(graph, target, p, batch) for p in near}
    mine = whole_ms(graph, target, precision, batch)
    others = [(ms, p) for p, ms in found.items() if ms is not None and p != precision]
    if mine is None or not others:
        return ""
    ms, best = min(others)
    if ms >= mine * (1 - BAND["modelled"] / 2):
        return ""
    return (
        f"{best} is modelled {mine / ms:.1f} x faster than {precision} here ({ms:.4g} ms "
        f"against {mine:.4g} ms): --precision {best}"
    )


def _latency_line(kind: str, ms: float, dense_ms: float, profile: str) -> str:
    return (
        f"predicted latency: {ms:.4g} ms, dense {dense_ms:.4g} ms "
        f"({dense_ms / ms if ms > 0 else 1.0:.2f} x), within {100 * BAND[kind]:.0f} %; "
        f"profile: {profile}"
    )
