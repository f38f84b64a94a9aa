"""The data of a preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tcompile.core.parameters import Parameters
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.schedulers.base import Scheduler


@dataclass(frozen=True)
class Preset:
    """A published method as score × reducer × schedule.

    Attributes:
        name: as in `--method`.
        family: what it does with tokens, for lists: `prune`, `merge`, `dense` (the map stays
            whole), `output` (once, behind a tower), `head`, `static`, `calibrated`.
        summary: one line.
        formula: the mathematics, for `tcompile methods`.
        reference: where it was published.
        scheduler: how many tokens leave where.
        score: importance per token, or None; a function where it varies by step.
        reducer: what happens to the tokens that leave; a function where it varies by step.
        parameters: what it takes.
        budget: names of the parameters that set the budget by themselves, without `--keep`.
        required: names of the parameters that have no default.
        needs: of the model beyond what its scores need: `grid`, `frames`, `calibration`.
        published: settings of the paper, as `--method` takes them or in words.
        note: what it costs or how it deviates, in a line.
    """

    name: str
    family: str
    summary: str
    formula: str
    reference: str
    scheduler: Scheduler
    score: Spec | Callable[[Step], Spec | None] | None
    reducer: Spec | Callable[[Step], Spec]
    parameters: Parameters = field(default_factory=dict)
    budget: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    published: str = ""
    note: str = ""

    def score_at(self, step: Step) -> Spec | None:
        """The score at a step."""
        return self.score(step) if callable(self.score) else self.score

    def reducer_at(self, step: Step) -> Spec:
        """The reducer at a step."""
        return self.reducer(step) if callable(self.reducer) else self.reducer

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "family": self.family,
            "summary": self.summary,
            "formula": self.formula,
            "reference": self.reference,
            "schedule": self.scheduler.words,
            "parameters": {k: p.to_json() for k, p in self.parameters.items()},
            "sets_budget": list(self.budget),
            "required": list(self.required),
            "needs": list(self.needs),
            "published": self.published,
            "note": self.note,
        }
