"""The rule by which restored outputs give dropped tokens back: the one asked for, or the one that
loses least on images (`passes.reduce.restoring` has the rules)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import RESTORES, Schedule
from tcompile.core.subgraph import joined
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.reduce.check import dense_grid
from tcompile.passes.reduce.restoring import default_rule, rules_for
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import calibration_samples
from tcompile.planning.losses.distance import Outputs, distance, unit
from tcompile.planning.request import NO_IMAGES, Request
from tcompile.runtime.samples import Samples, run_graph

#: The share by which a rule may lose more than the best and is taken, because it costs less.
MARGIN = 0.02


@dataclass(frozen=True)
class RuleChoice:
    """The rule that loses least.

    Attributes:
        rule: its name.
        losses: mean distance from the dense outputs, by rule; the cheaper rules first.
        unit: of the losses.
        source: the samples that they were measured on, in words.
    """

    rule: str
    losses: Mapping[str, float]
    unit: str
    source: str

    @property
    def words(self) -> str:
        """A line for people."""
        others = ", ".join(f"{n} {x:.3g}" for n, x in self.losses.items() if n != self.rule)
        line = f"dropped tokens are given back as {self.rule}: {self.losses[self.rule]:.3g}"
        return f"{line} {self.unit} on {self.source}" + (f" ({others})" if others else "")


def choose_rule(
    model: Analysed,
    schedule: Schedule,
    samples: Samples,
    say: Progress = silent,
    dense: Outputs | None = None,
) -> RuleChoice:
    """The rule that loses least on samples, the cheaper one of two that lose about the same.

    One graph has the outputs of all rules, so that what stands before them runs once.

    Args:
        schedule: of the model's tower; its own rule does not matter.
        dense: the dense model's outputs for the samples, where they are known.

    Raises:
        UsageError: the schedule does not fit, or no output can be compared.
    """
    analysis = model.analysis
    rules = rules_for(schedule.reductions, dense_grid(analysis))
    graphs = {}
    for rule in rules:
        asked = replace(schedule, restore=rule)
        try:
            graphs[rule] = reduce_graph(model.graph, analysis, asked, outputs="restored").graph
        except UsageError:
            if rule == rules[0]:  # which every model can do
                raise
    say(f"giving tokens back by {len(graphs)} rules on {len(samples)} samples")
    found = _run_all(graphs, samples)
    known = run_graph(model.graph, samples) if dense is None else dense
    losses = {}
    for rule in sorted(graphs, key=list(RESTORES).index):
        outputs = {n: found[f"{rule}/{n}"] for n in known if f"{rule}/{n}" in found}
        losses[rule] = float(np.mean(distance(known, outputs)))
    least = min(losses.values())
    best = next(rule for rule, loss in losses.items() if loss <= least * (1 + MARGIN))
    return RuleChoice(best, losses, unit(known), samples.source)


def _run_all(graphs: Mapping[str, gs.Graph], samples: Samples) -> Outputs:
    """The outputs of all graphs, as `GRAPH/OUTPUT`."""
    nodes = [node for graph in graphs.values() for node in graph.nodes]
    if any(isinstance(value, gs.Graph) for node in nodes for value in node.attrs.values()):
        # Branches read tensors of the graph around them by name.
        runs = {name: run_graph(graph, samples) for name, graph in graphs.items()}
        return {f"{name}/{out}": x for name, run in runs.items() for out, x in run.items()}
    return run_graph(joined(graphs), samples)


def with_rule(
    model: Analysed,
    request: Request,
    schedule: Schedule,
    say: Progress = silent,
    *,
    solved: bool = False,
) -> Schedule:
    """The schedule with the rule that restored outputs go by: the one asked for, its own, the best
    on the calibration images, or the one of its methods.

    Args:
        solved: the planner made it, and weighed its losses under the rule that it has.

    Raises:
        UsageError: images that cannot be read, or `choose_rule`'s.
    """
    if request.outputs != "restored" or not schedule.reductions:
        return schedule
    known = request.restore or schedule.restore
    if known is not None:
        return replace(schedule, restore=known)
    if request.calibration in (None, NO_IMAGES) or solved:
        return replace(schedule, restore=default_rule(schedule.reductions))
    choice = choose_rule(model, schedule, calibration_samples(model, request), say)
    return replace(schedule, restore=choice.rule, notes=(*schedule.notes, choice.words))
