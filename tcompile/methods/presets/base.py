"""The data of a preset, and the parameters, scores and reducers that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tcompile.core.parameters import Parameter, Parameters
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
        auto: whether `--method auto` weighs it: tokens leave for good within the tower, by what is
            in the image, at any site and count, and it costs no attention of all tokens on all more
            than once in a few blocks.
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
    auto: bool = False

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


CLS = Spec("cls")
TOPK = Spec("topk")


def rate(published: str = "") -> Parameter:
    """The parameter of stages: tokens kept at each."""
    paper = f" (paper: {published})" if published else ""
    return Parameter(Fraction, None, f"tokens kept at each stage{paper}", least=0.001, most=1)


def count(meaning: str) -> Parameter:
    """Tokens, 0 or more; not set by default."""
    return Parameter(int, None, meaning, least=0)


PROP_ATTN = Parameter(bool, True, "proportional attention: logits + log size")
HEAD = Parameter(
    Path,
    None,
    "the file of its trained weights, .npz: norm.weight, norm.bias, 0.weight, 0.bias, 1.weight, …",
)


def head(step: Step) -> Spec:
    """The score of a user's trained head."""
    return Spec("head", {"file": str(step.values["head"])})


def part(score: Spec, **of_the_term: Any) -> dict[str, Any]:
    """A term of the scores sum and product."""
    return {"score": score.to_json(), **of_the_term}


def chain(*steps: tuple[Spec, int] | tuple[Spec, int, Spec]) -> Spec:
    """Reducers in turn, each with the patch tokens that it leaves and a score of its own, if it has
    one; those that take none are gone.

    The first item is (anything, tokens before).
    """
    at, last = steps[0][1], steps[0][0]
    parts: list[dict[str, Any]] = []
    for spec, keep, *own in steps[1:]:
        if keep < at:
            score = {"score": own[0].to_json()} if own else {}
            parts.append({"reducer": spec.to_json(), "keep": keep, **score})
            last, at = spec, keep
    if len(parts) == 1 and "score" not in parts[0]:
        return last
    return Spec("chain", {"steps": parts})
