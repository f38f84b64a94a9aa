"""What the planner answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tcompile.planning.losses.drop import Drop
from tcompile.planning.optimise import Front, Plan, Plateau
from tcompile.planning.schedule import Schedule


@dataclass(frozen=True)
class Tried:
    """A method that was weighed against others: what its best plan would take and lose."""

    method: str
    latency_ms: float
    loss: float


@dataclass(frozen=True, eq=False)
class Planned:
    """A schedule that was solved, and why it is this one.

    Attributes:
        schedule: what to build.
        plan: sites, counts, predicted latency and loss, and those of the dense model.
        profile: where latencies come from, in words; `kind` is `measured` or `modelled`.
        band: the share by which a measurement may differ from the prediction.
        losses: where losses come from, and their unit.
        plateaus: of each step's count.
        front: plans that no other beats in both latency and loss; None where nothing was weighed.
        tried: all methods that were weighed.
        drop: what was lost on images that nothing was planned with.
        curve: (tokens, ms) of the whole model if it carried so many from the first block on.
    """

    schedule: Schedule
    plan: Plan
    profile: str
    kind: str
    band: float
    losses: str
    plateaus: tuple[Plateau, ...] = ()
    front: Front | None = None
    tried: tuple[Tried, ...] = ()
    drop: Drop | None = None
    curve: tuple[tuple[int, float], ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)

    @property
    def declined(self) -> str:
        """Why it is the dense model although something else was asked for; or empty."""
        return self.plan.declined

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
            "declined": self.plan.declined,
            "steps": [
                {**vars(step), "plateau": [p.first, p.last]}
                for step, p in zip(self.plan.steps, self.plateaus, strict=True)
            ],
            "drop": None if self.drop is None else self.drop.to_json(),
            "tried": [vars(t).copy() for t in self.tried],
            "front": [[p.latency_ms, p.loss] for p in self.front.plans] if self.front else [],
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
        if self.declined:
            said.append(f"declined: {self.declined}")
        return said


def plateau_rows(planned: Planned) -> Sequence[tuple[str, int, int, str]]:
    """(site, before, after, plateau) of each step, prefix included."""
    return [
        (s.site, s.before, s.after, f"{p.first} to {p.last}: {p.ms:.4g} ms behind it")
        for s, p in zip(planned.plan.steps, planned.plateaus, strict=True)
    ]
