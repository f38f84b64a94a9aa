"""Form of the oracle of a preset, and how it reads a schedule.

How many tokens leave where is read from the schedule; which ones, and what becomes of them, is the
published formula with its published parameters.  What a schedule says of scores and reducers is not
read, but for the counts in between of reducers in a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.oracles.choices import Step, fuse, topk, topk_groups
from tests.oracles.methods import Reduction
from tests.oracles.moments import Moment
from tests.oracles.stream import gather


@dataclass(frozen=True)
class PresetOracle:
    """A method, from its paper.

    step: what is decided where tokens leave (sites attn, block, output), or are merged for one
        attention (inside).
    around: scores [B, T] of those that are to run through a block.
    back: all patches [B, T0, C], where a schedule lets them return.
    proportional: whether later attention counts a key as often as its size.
    defaults: published parameters; a test's own come on top.
    """

    name: str
    step: Callable[[Moment], Step] | None = None
    around: Callable[[Moment], Tensor] | None = None
    back: Callable[[Moment], Tensor] | None = None
    proportional: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def reductions(self, schedule: Mapping[str, Any], values: Mapping[str, Any]) -> list[Reduction]:
        """Return what a schedule's JSON lets leave, by this oracle.

        values: the preset's parameters as the test chose them.
        """
        rows, found = schedule["reductions"], []
        for number, row in enumerate(rows):
            kind = self._kind(row, schedule["model"]["patches"])
            decide = {"bypass": self.around, "back": self.back}.get(kind, self.step)
            assert decide is not None, f"{self.name}: nothing is known of {kind} at {row['site']}"
            steps = row["reducer"].get("steps", ())
            found.append(
                Reduction(
                    site=row["site"],
                    kind=kind,
                    keep=row["keep"],
                    proportional=self.proportional,
                    decide=decide,
                    values={**self.defaults, **values},
                    counts=tuple(step["keep"] for step in steps if "keep" in step),
                    number=number,
                    steps=len(rows),
                )
            )
        return found

    @staticmethod
    def _kind(row: Mapping[str, Any], patches: int) -> str:
        half = row["site"].partition(":")[0]
        if half in ("around", "inside"):
            return {"around": "bypass"}.get(half, half)
        return "back" if row["keep"] == patches else "preset"


# ---- what most of them do with a score -----------------------------------------------------------


def keep_best(
    moment: Moment, score: Tensor, x: Tensor | None = None, keep: int | None = None
) -> Step:
    """The best stay, ascending; the others are gone. x: tokens after an earlier step, if any."""
    if x is None and moment.groups is not None:
        step = topk_groups(moment.x, moment.sizes, score, moment.cut.keep, moment.groups)
    elif x is None:
        step = topk(moment.x, moment.sizes, score, keep or moment.cut.keep)
    else:
        step = topk(x, None, score, keep or moment.cut.keep)
    return relative(step, score)


def then(first: Step, second: Step) -> Step:
    """Both, one after the other."""
    return Step(
        x=second.x,
        sizes=second.sizes,
        source=gather(first.source, second.source),
        owner=gather(second.owner, first.owner),
        margins=(*first.margins, *second.margins),
    )


def with_margin(step: Step, what: str, gap: Tensor) -> Step:
    """The step with this in place of its margins but for the owners'."""
    owners = tuple(margin for margin in step.margins if margin[0] == "owner")
    return Step(step.x, step.sizes, step.source, step.owner, (*owners, (what, gap)))


def exact(step: Step) -> Step:
    """The step whose choice no rounding can change."""
    owners = tuple(margin for margin in step.margins if margin[0] == "owner")
    return Step(step.x, step.sizes, step.source, step.owner, owners)


def fuse_rest(moment: Moment, score: Tensor, *, mean: bool) -> Step:
    """The keep − 1 best stay, ascending, then one token: the mean of the others, or their sum,
    each times its score."""
    step = relative(fuse(moment.x, moment.sizes, score, moment.cut.keep), score)
    if not mean:
        return step
    gone = torch.ones_like(score).scatter(1, step.source[:, :-1], 0.0)
    rest = (gone.unsqueeze(1) @ moment.x) / gone.sum(dim=1)[:, None, None]
    x = torch.cat([step.x[:, :-1], rest], dim=1)
    return Step(x, step.sizes, step.source, step.owner, step.margins)


def relative(step: Step, score: Tensor) -> Step:
    """The step with its margin `kept` as a fraction of the largest score."""
    margins = tuple(
        ("relative", gap / score.abs().amax(dim=1)) if what == "kept" else (what, gap)
        for what, gap in step.margins
    )
    return Step(step.x, step.sizes, step.source, step.owner, margins)
