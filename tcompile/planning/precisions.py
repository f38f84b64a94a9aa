"""`--precision auto`: tokens and precision weighed against one budget, by what is lost on images.

Each precision that can be measured here gets a plan of its own, by a profile in that precision:
where int8 is faster, more tokens are left within a latency, or all of them. The plans are then run,
each in its precision, on the images that they were made with. Who could have the dense model in
another precision sooner, and hardly anything lost, has no use for fewer tokens in this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.progress import Progress
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.planning.front import FrontPlan, front_of
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.request import NO_METHOD, Request
from tcompile.planning.resolution import resized_model
from tcompile.planning.search.evidence import evidence_for
from tcompile.planning.search.search import SUMMED_UP, summed_up
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
from tcompile.profiling.runtimes import MEASURED
from tcompile.runtime.rounded import run_in
from tcompile.runtime.samples import Samples, run_graph
from tcompile.targets import Target
from tcompile.targets.backends.openvino import check_precision

AUTO_PRECISION = "auto"
#: What the dense model may lose in a precision so that a slower plan in another is out.
HARDLY = 0.01
_NAME = "name the precision, e.g. --precision fp32"

#: Plans a request in a precision.
Planner = Callable[[str], tuple[Schedule, PlanReport | FixedPlan]]


@dataclass(frozen=True)
class InPrecision:
    """A plan in a precision.

    Attributes:
        loss: on the images that it was made with, run in that precision.
        ms: predicted.
        dense_ms, dense_loss: of the dense model in that precision.
    """

    precision: str
    schedule: Schedule
    planned: PlanReport
    loss: float
    ms: float
    dense_ms: float
    dense_loss: float

    @property
    def words(self) -> str:
        """What it is, takes and loses."""
        left = f"{self.schedule.final} patch tokens" if self.planned.plan.steps else "all tokens"
        if self.schedule.resized is not None:
            left = "a smaller image"
        return f"{self.precision} with {left} takes {self.ms:.4g} ms and loses {self.loss:.3g}"


def check_weighable(target: Target, request: Request) -> None:
    """Look whether precisions can be weighed at all.

    Raises:
        UsageError: the target is no CPU, or there is no budget to weigh them against.
    """
    where = "--precision auto"
    if not target.on_cpu:
        raise UsageError(
            f"{target.name} cannot be measured in several precisions from here",
            where=where,
            hint=f"say one of {', '.join(target.precisions)}",
        )
    if request.latency is None and request.max_drop is None:
        raise UsageError(
            "a precision is weighed against a latency or a drop, and neither is given",
            where=where,
            hint=f"say --latency or --max-drop, or {_NAME}",
        )


def best_precision(
    model: Analysed, request: Request, target: Target, plan: Planner, say: Progress
) -> tuple[InPrecision, str]:
    """The plan that loses least within the latency, or takes least within the drop; and a note that
    names what it was weighed against.

    Raises:
        UsageError: no precision has a plan within the budgets, there are no images, or there is
            nothing to weigh.
    """
    evidence = evidence_for(model, request)
    if evidence is None:
        raise UsageError(
            "what a precision loses is only seen on images, and there are none",
            where="--precision auto",
            hint=f"give some, --calibration DATA, or {_NAME}",
        )
    samples = evidence.fit.samples
    dense = _dense(model, samples)
    found: list[InPrecision] = []
    failed: dict[str, TcompileError] = {}
    for precision in MEASURED[target.runtime]:
        say(f"planning in {precision}")
        try:
            if target.runtime == "openvino":
                check_precision(precision)
            schedule, planned = plan(precision)
            if isinstance(planned, FixedPlan):
                raise UsageError("nothing is solved for here", where="--precision auto", hint=_NAME)
            say(f"running the plan in {precision}")
            graph = _graph(model, schedule, request.outputs)
            outputs = run_in(graph, samples, target, precision)
        except TcompileError as error:
            failed[precision] = error
            continue
        loss = of_dense = summed_up(distance(dense, outputs))
        if graph is not model.graph:
            outputs = run_in(model.graph, samples, target, precision)
            of_dense = summed_up(distance(dense, outputs))
        made, whole = planned.plan.latency_ms, planned.plan.dense_ms
        found.append(InPrecision(precision, schedule, planned, loss, made, whole, of_dense))
    if not found:
        raise next(iter(failed.values()))
    slower = {one.precision: why for one in found if (why := _beaten(one, found))}
    weighable = [one for one in found if one.precision not in slower] or found
    best = min(weighable, key=attrgetter("ms" if request.max_drop is not None else "loss"))
    front = front_of(p for one in found for p in _front(one, len(samples), chosen=one is best))
    best = replace(best, planned=replace(best.planned, front=front))
    weighed = [one.words for one in found]
    weighed += [f"{precision} is out: {why}" for precision, why in slower.items()]
    weighed += [f"{precision} is out: {error.what}" for precision, error in failed.items()]
    source = f"{unit(dense)} ({SUMMED_UP}), measured on {samples.source}"
    return best, f"precision {best.precision} is taken: {'; '.join(weighed)} ({source})"


def _beaten(one: InPrecision, found: Sequence[InPrecision]) -> str:
    """Tell which dense model in another precision is faster and loses hardly anything; empty where
    none is, or the plan keeps all tokens: in fp32 that loses nothing."""
    if not one.planned.plan.steps and one.schedule.resized is None:
        return ""
    for other in found:
        if other is not one and other.dense_ms < one.ms and other.dense_loss <= HARDLY:
            lost = f"{other.dense_ms:.4g} ms and loses {other.dense_loss:.3g}"
            return f"slower than the dense model in {other.precision}, which takes {lost}"
    return ""


def _front(one: InPrecision, images: int, *, chosen: bool) -> Iterator[FrontPlan]:
    """What was looked at in a precision; of its own plan, the loss in that precision."""
    for plan in one.planned.front:
        if plan.chosen:
            plan = replace(plan, loss=one.loss, seen_in=one.precision, images=images, chosen=chosen)
        yield plan


def _dense(model: Analysed, samples: Samples) -> dict[str, Any]:
    """The dense model's outputs.

    Raises:
        UsageError: it cannot be run on the images, or gives nothing that can be compared.
    """
    try:
        found = run_graph(model.graph, samples)
        distance(found, found)
    except Exception as error:  # ONNX Runtime's own, of inputs that no image stands for
        said = error.what if isinstance(error, TcompileError) else " ".join(str(error).split())
        raise UsageError(
            f"what a precision loses cannot be seen on {samples.source}: {said[:200]}",
            where="--precision auto",
            hint=_NAME,
        ) from error
    return found


def _graph(model: Analysed, schedule: Schedule, outputs: str) -> gs.Graph:
    if schedule.resized is not None:
        return resized_model(model, schedule, outputs).graph
    if schedule.method == NO_METHOD or not schedule.reductions:
        return model.graph
    return reduce_graph(model.graph, model.analysis, schedule, outputs=outputs).graph
