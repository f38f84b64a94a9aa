"""What the planner answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tcompile.core.schedule import Schedule
from tcompile.planning.losses.drop import Drop
from tcompile.planning.optimise import Plan
from tcompile.planning.solve.outcome import Outcome
from tcompile.profiling.plateaus import Plateau

#: By kind of profile: the share of the dense latency below which a predicted saving says nothing.
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
        band: the share by which a measurement may differ from the prediction.
        losses: where losses come from, and their unit.
        outcome: what was asked, what is given, and why.
        plateaus: of each step's count.
        front: plans that no other beats in both latency and loss; none where nothing was weighed.
        tried: all methods that were weighed.
        drop: what was lost on images that nothing was planned with.
        curve: (tokens, ms) of the whole model if it carried so many from the first block on.
        budget: what was asked, by name.
    """

    schedule: Schedule
    plan: Plan
    profile: str
    kind: str
    band: float
    losses: str
    outcome: Outcome
    plateaus: tuple[Plateau, ...] = ()
    front: tuple[Plan, ...] = ()
    tried: tuple[Tried, ...] = ()
    drop: Drop | None = None
    curve: tuple[tuple[int, float], ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the Pareto front as pairs."""
        return {
            "latency_kind": self.kind,
            "profile": self.profile,
            "band": self.band,
            "losses": self.losses,
            "budget": dict(self.budget),
            "predicted_ms": self.plan.latency_ms,
            "dense_ms": self.plan.dense_ms,
            "loss": self.plan.loss,
            "gap": self.plan.gap,
            "steps": [
                {**vars(step), "plateau": [p.first, p.last]}
                for step, p in zip(self.plan.steps, self.plateaus, strict=True)
            ],
            "drop": None if self.drop is None else self.drop.to_json(),
            "tried": [vars(t).copy() for t in self.tried],
            "front": [[p.latency_ms, p.loss] for p in self.front],
        }

    def lines(self) -> list[str]:
        """For people."""
        plan = self.plan
        said = [
            f"{self.kind} latency: {plan.latency_ms:.4g} ms, dense {plan.dense_ms:.4g} ms "
            f"({plan.speedup:.2f} x), within {100 * self.band:.0f} %; profile: {self.profile}",
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


@dataclass(frozen=True)
class Modelled:
    """Latency of a whole model by the roofline, dense and reduced.

    Attributes:
        dense_ms, ms: of one batch.
        profile: of what device, in words.
        band: the share by which a measurement may differ.
    """

    dense_ms: float
    ms: float
    profile: str
    band: float

    def note(self) -> str:
        """A note where nothing is gained by the model; empty for none."""
        return prediction_note("modelled", self.ms, self.dense_ms, self.band)


def prediction_note(kind: str, ms: float, dense_ms: float, band: float) -> str:
    """That a prediction sees nothing to gain; empty where it does. What is built does not depend on
    it.

    Args:
        kind: `measured` or `modelled`, of the profile.
        band: the share by which a measurement may differ.
    """
    if ms < dense_ms * (1 - WORTH[kind]):
        return ""
    whose = "the model's error" if kind == "modelled" else "what a profile can tell"
    near = abs(ms - dense_ms) <= band * dense_ms
    verdict = f"within {whose}" if near else f"slower by more than {whose}, {band:.0%}"
    return (
        f"{kind} latency says reduced {ms:.4g} ms, dense {dense_ms:.4g} ms: {verdict}; "
        "measure on the device"
    )


@dataclass(frozen=True)
class Followed:
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
        """As JSON values, by the names that a solved schedule has for them."""
        m = self.modelled
        latency = (
            {}
            if m is None
            else {
                "latency_kind": "modelled",
                "profile": m.profile,
                "band": m.band,
                "predicted_ms": m.ms,
                "dense_ms": m.dense_ms,
            }
        )
        return {"budget": dict(self.budget), **latency}

    def lines(self) -> list[str]:
        """For people."""
        m = self.modelled
        if m is None:
            return []
        note = m.note()
        said = [f"note: {note}"] if note else []
        return [
            *said,
            f"modelled latency: {m.ms:.4g} ms, dense {m.dense_ms:.4g} ms "
            f"({m.dense_ms / m.ms if m.ms > 0 else 1.0:.2f} x), within {100 * m.band:.0f} %; "
            f"profile: {m.profile}",
        ]


def plateau_rows(planned: PlanReport) -> Sequence[tuple[str, int, int, str]]:
    """(site, before, after, plateau) of each step, prefix included."""
    return [
        (s.site, s.before, s.after, f"{p.first} to {p.last}: {p.ms:.4g} ms behind it")
        for s, p in zip(planned.plan.steps, planned.plateaus, strict=True)
    ]
