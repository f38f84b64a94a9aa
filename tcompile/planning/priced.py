"""A schedule and what it costs to follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tcompile.core.schedule import Schedule
from tcompile.planning.cost import Cost
from tcompile.planning.solve.planned import Followed, PlanReport


@dataclass(frozen=True)
class PlanWithCost:
    """A schedule and what following it costs.

    Attributes:
        schedule, cost: they.
        chosen: how the schedule was solved, or whose it is; what was asked, what is kept, and why.
    """

    schedule: Schedule
    cost: Cost
    chosen: PlanReport | Followed

    @property
    def planned(self) -> PlanReport | None:
        """How it was solved; None where a method's own schedule or a given one is followed."""
        return self.chosen if isinstance(self.chosen, PlanReport) else None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.chosen.outcome.to_json(),
            **self.schedule.to_json(),
            "cost": self.cost.to_json(),
            "plan": self.chosen.to_json(),
        }
