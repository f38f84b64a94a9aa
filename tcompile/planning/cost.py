"""The FLOPs and nodes that a method adds to a model: the price of deciding which tokens leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tcompile.analysis.flops import batch_size, graph_flops, node_flops
from tcompile.core.domain import DOMAIN
from tcompile.core.schedule import Reduction, Spec
from tcompile.passes.reduce.reducers import filled_reducer, reducer_of
from tcompile.passes.reduce.scores import leaves
from tcompile.passes.stages import Reduced
from tcompile.plugins.ops import OPS


@dataclass(frozen=True)
class Cost:
    """FLOPs are of matrix products and convolutions, for one image.

    Attributes:
        dense, reduced: FLOPs of the whole model before and after.
        added: FLOPs of scores and reducers, a part of `reduced`.
        nodes: how many nodes they are, token ops spelled out in standard ops.
        unfused: `site: score` where the score keeps TensorRT from fusing the attention.
    """

    dense: int
    reduced: int
    added: int
    nodes: int
    unfused: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "flops_dense": self.dense,
            "flops_reduced": self.reduced,
            "flops_added": self.added,
            "nodes_added": self.nodes,
            "unfused": list(self.unfused),
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        share = 100 * self.added / max(self.reduced, 1)
        fused = f"not at {', '.join(self.unfused)}" if self.unfused else "stays fused"
        return [
            f"FLOPs: {_scaled(self.reduced)} of {_scaled(self.dense)} "
            f"({100 * self.reduced / max(self.dense, 1):.1f} %), {_scaled(self.added)} of them "
            f"({share:.1f} %) for the method itself",
            f"Nodes that the method adds: {self.nodes}; attention {fused}",
        ]


def cost_of(reduced: Reduced) -> Cost:
    """The cost of the schedule that was applied, before lowering."""
    graph = reduced.graph
    written = [n for n in graph.nodes if n.name in reduced.written]
    added = sum(node_flops(n) for n in written) // batch_size(graph)
    bodies = {op.name: _length(op.function(graph.opset)) for op in OPS}
    nodes = sum(bodies[n.op] if n.domain == DOMAIN else 1 for n in written)
    unfused = tuple(
        f"{step.site} (score {score.name})"
        for step in reduced.schedule.reductions
        for spec in _scores(step)
        for score, values in leaves(spec)
        if not score.fused(values)
    )
    return Cost(graph_flops(reduced.dense), graph_flops(graph), added, nodes, unfused)


def _scores(step: Reduction) -> list[Spec]:
    """All scores of a step: its own and those its reducer takes besides."""
    others = reducer_of(step.reducer).scores(filled_reducer(step.reducer))
    return [*([step.score] if step.score else []), *others]


def _scaled(number: float) -> str:
    """A number with three digits and a unit."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def _length(function: Any) -> int:
    """Nodes of a token op's body that compute something."""
    return sum(1 for n in function.node if n.op_type != "Constant")
