"""The fastest plan that loses no more than it may, seen on images that nothing was planned with.

Losses of single steps only rank plans. So plans of the Pareto front are built and run on images of
their own, by bisection: what loses less by the tables is taken to lose less on images. The bound of
the drop is one for the best of as many as may be run (`losses.drop`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress
from tcompile.core.save import save
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce import reduce_graph
from tcompile.planning.losses import Calibration, Drop, images_needed, measure_drop
from tcompile.planning.optimise import Plan, front
from tcompile.planning.solve.budgets import Budget, MethodPlan, dense_choice, limits_of
from tcompile.planning.solve.candidates import MethodTables
from tcompile.planning.solve.compose import schedule_of
from tcompile.runtime.samples import run_all

Outputs = Mapping[str, npt.NDArray[Any]]
#: Of a bound, before it is shared among the plans that are tried.
CONFIDENCE = 0.9
#: Plans of the front that are weighed; a bisection runs log2 of them, and one more.
_POINTS = 40


class Trial:
    """Runs plans on images that nothing was planned with.

    Args:
        images: to check on.
        most: plans that may be run, among which the best is picked.
    """

    def __init__(
        self, graph: gs.Graph, images: Calibration, outputs: str, most: int, say: Progress
    ) -> None:
        self.graph, self.images, self.outputs, self.say = graph, images, outputs, say
        self.confidence = 1 - (1 - CONFIDENCE) / max(most, 1)
        self.dense = self._run(graph)

    def drop(self, candidate: MethodTables, schedule: Schedule) -> Drop:
        """What a schedule loses on the images."""
        made = reduce_graph(self.graph, candidate.method.analysis, schedule, outputs=self.outputs)
        return measure_drop(
            self.dense, self._run(made.graph), self.images.labels, confidence=self.confidence
        )

    def _run(self, graph: gs.Graph) -> Outputs:
        self.say(f"running {len(self.images)} images")
        with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
            path = Path(folder) / "model.onnx"
            save(graph, path)
            return run_all(path, self.images.samples)


def fastest_within(
    graph: gs.Graph,
    candidates: Sequence[MethodTables],
    budget: Budget,
    most: float,
    images: Calibration,
    outputs: str,
    say: Progress,
) -> tuple[MethodPlan, Drop | None]:
    """The fastest plan whose drop on the images is at most `most`, for certain as far as they tell.

    The dense model where no other plan is.

    Raises:
        UsageError: with a latency or a share of tokens besides: no plan keeps to both.
    """
    plans = _by_loss(candidates, budget)
    if not plans:
        dense = candidates[0].tables.dense_ms
        why = (
            f"no plan is predicted to be faster than the dense model's {dense:.4g} ms by more "
            f"than {budget.band:.0%}"
        )
        return dense_choice(candidates[0], "drop", why), None
    tries = max(math.ceil(math.log2(len(plans) + 1)), 1)
    trial = Trial(graph, images, outputs, tries, say)
    best: tuple[MethodPlan, Drop] | None = None
    low, high = 0, len(plans) - 1  # Of plans that are not known to lose too much.
    nearest: Drop | None = None
    while low <= high:
        middle = (low + high) // 2
        choice = plans[middle]
        say(f"trying {choice.plan.latency_ms:.4g} ms with {choice.candidate.method.text}")
        drop = trial.drop(choice.candidate, schedule_of(choice.candidate.method, choice.plan))
        if drop.upper <= most:
            best, low = (choice, drop), middle + 1
        else:
            high = middle - 1
            nearest = drop if nearest is None or drop.upper < nearest.upper else nearest
    if best is not None:
        return best
    why = f"no plan was seen to lose at most {most:.2%}"
    if nearest is not None:
        why += (
            f": of those run, the best lost {nearest.mean:.2%}, and at most "
            f"{nearest.upper:.2%} for all that {nearest.images} images tell"
        )
        need = images_needed(most, trial.confidence, labels=images.labels is not None)
        if nearest.images < need and nearest.exact:
            why += f"; it takes {need} images to check on to show so little"
    if budget.latency_ms is not None or budget.final is not None:
        if budget.latency_ms is not None:
            why += f", within {budget.latency_ms:.4g} ms"
        if budget.final is not None:
            why += f", with {budget.final - candidates[0].tables.prefix} patch tokens kept"
        raise UsageError(
            why, where="--max-drop", hint="allow more latency or drop, or give more images"
        )
    return dense_choice(candidates[0], "drop", why), nearest


def _by_loss(candidates: Sequence[MethodTables], budget: Budget) -> list[MethodPlan]:
    """Plans of all methods' fronts that no other beats, from the least loss to the most."""
    found: list[MethodPlan] = []
    reason: UsageError | None = None
    for one in candidates:
        try:
            plans = front(one.tables, limits_of(one, budget), points=_POINTS)
        except UsageError as error:
            reason = reason or error
            continue
        found += [MethodPlan(one, p) for p in plans if _counts(one, p, budget)]
    if not found and reason is not None:
        raise reason
    if budget.latency_ms is not None and not found:
        raise UsageError(f"no plan takes {budget.latency_ms:.4g} ms", where="--latency")
    kept: list[MethodPlan] = []
    fastest = np.inf
    for choice in sorted(found, key=lambda c: (c.plan.loss, c.plan.latency_ms)):
        if choice.plan.latency_ms < fastest:
            fastest = choice.plan.latency_ms
            kept.append(choice)
    return kept


def _counts(candidate: MethodTables, plan: Plan, budget: Budget) -> bool:
    """Whether a plan is worth running: in budget, and predicted to be faster than dense by more
    than the band, unless its count of tokens was asked for."""
    if not plan.steps or (budget.latency_ms is not None and plan.latency_ms > budget.latency_ms):
        return False
    faster = plan.latency_ms < candidate.tables.dense_ms * (1 - budget.band)
    return faster or budget.final is not None
