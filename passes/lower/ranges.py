"""What keeps parts of an fp16 graph in fp32: the ranges of its values on images.

fp16 ends at 65504. Trained models go beyond that in a few tensors: massive activations of the
residual stream (Sun et al., Massive Activations in Large Language Models, 2024, section 2), the
hidden layer of an MLP, products of queries and keys that are scaled only afterwards. Such a tensor,
the node that gives it and those that read it are in fp32, and casts lie around them.

Products of queries and keys need not be: scaling is moved in front of the product, so that it, the
softmax and the product behind it stay the fp16 chain that is fused into one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.copies import copied
from tcompile.core.graph import is_const
from tcompile.core.rounding import FLOAT32
from tcompile.passes.lower.fp32_policy import FLOAT16_MAX, clamps, peek

#: Least value that is taken for a value: what lies below is a mask's, and means minus infinity.
MASKED = -1e8
#: Largest magnitude that is left to fp16, a quarter of its range: values of other images go further
#: than those of the images that were looked at.
LIMIT = FLOAT16_MAX / 4


@dataclass(frozen=True)
class Range:
    """The least and the largest value of a tensor."""

    low: float
    high: float

    def joined(self, other: Range) -> Range:
        """The range of both; not finite where one of them is not."""
        ends = (self.low, self.high, other.low, other.high)
        if any(math.isnan(end) for end in ends):
            return Range(math.nan, math.nan)
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass
class Wide:
    """The nodes of a graph that fp16 is too narrow for.

    Attributes:
        measure: gives the ranges of a graph's tensors on images, by name; see `with_ranges`.
        nodes: by name, with the largest magnitude that each takes or gives.
        of: how many nodes were looked at.
        scaled: products that are scaled in front instead of behind.
    """

    measure: Callable[[gs.Graph], Mapping[str, Range]]
    nodes: dict[str, float] = field(default_factory=dict)
    of: int = 0
    scaled: int = 0

    def look(self, graph: gs.Graph, fp32_nodes: frozenset[str]) -> frozenset[str]:
        """Measure a graph, let its products be scaled in front where that helps, in place, and
        return the names of the nodes that must stay in fp32 for their ranges.

        Args:
            fp32_nodes: those that stay for another reason.
        """
        ranges = self.measure(graph)
        self.scaled = scale_first(graph, ranges, fp32_nodes)
        self.nodes, self.of = wide_nodes(graph, ranges), len(graph.nodes)
        return frozenset(self.nodes)


def with_ranges(graph: gs.Graph) -> gs.Graph:
    """A copy of an fp32 graph that gives, for each float tensor that is given to it or that a node
    gives, its least and its largest value, in this order, each of one number."""
    probed = copied(graph)
    outputs = list[gs.Variable]()
    nodes = list[gs.Node]()
    for tensor in _measured(probed):
        for op in ("ReduceMin", "ReduceMax"):
            found = gs.Variable(f"{tensor.name}/{op}", FLOAT32, [])
            nodes.append(gs.Node(op, found.name, {"keepdims": 0}, [tensor], [found]))
            outputs.append(found)
    probed.nodes += nodes
    probed.outputs = outputs
    return probed


def names_of(graph: gs.Graph) -> list[str]:
    """The tensors whose ranges `with_ranges` gives, in its order."""
    return [str(tensor.name) for tensor in _measured(graph)]


def _measured(graph: gs.Graph) -> list[gs.Variable]:
    made = (tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty())
    return [t for t in (*graph.inputs, *made) if t.dtype == FLOAT32 and 0 not in (t.shape or ())]


def scale_first(
    graph: gs.Graph, ranges: Mapping[str, Range], fp32_nodes: frozenset[str] = frozenset()
) -> int:
    """Scale the first factor of a product that is too large for fp16, where it is scaled down
    behind by one number and fits then: s(AB) = (sA)B. In place.

    Args:
        fp32_nodes: products that are in fp32 anyway.

    Returns:
        How many products changed.
    """
    changed = 0
    ends = {t.name for t in graph.outputs}
    for at, node in reversed(list(enumerate(graph.nodes))):
        scale = _scaled_behind(node, ranges, ends)
        if scale is None or node.name in fp32_nodes:
            continue
        behind, factor = scale
        first = node.inputs[0]
        scaled = gs.Variable(f"{node.outputs[0].name}/scaled", FLOAT32, first.shape)
        number = gs.Constant(f"{node.name}/scale", np.asarray(factor, np.float32))
        node.inputs[0] = scaled
        before = gs.Node("Mul", f"{node.name}/scale_first", {}, [first, number], [scaled])
        graph.nodes.insert(at, before)
        node.outputs[0] = behind.outputs[0]
        behind.outputs.clear()
        behind.inputs.clear()
        graph.nodes.remove(behind)
        changed += 1
    return changed


def _scaled_behind(
    node: gs.Node, ranges: Mapping[str, Range], ends: set[str]
) -> tuple[gs.Node, float] | None:
    """The node that scales a product, and the number."""
    if node.op != "MatMul" or node.outputs[0].name in ends or len(node.outputs[0].outputs) != 1:
        return None
    if any(is_const(t) for t in node.inputs):
        return None
    (behind,) = node.outputs[0].outputs
    product, result = (ranges.get(t.name) for t in (node.outputs[0], behind.outputs[0]))
    if behind.op not in ("Mul", "Div") or product is None or result is None:
        return None
    numbers = [t for t in behind.inputs if is_const(t) and peek(t).size == 1]
    if not numbers or (behind.op == "Div" and behind.inputs[1] is not numbers[0]):
        return None
    if _reach(product) <= LIMIT or not _reach(result) <= LIMIT:
        return None
    factor = float(peek(numbers[0]).reshape(()))
    factor = 1 / factor if behind.op == "Div" else factor
    first = ranges.get(node.inputs[0].name)
    fits = first is not None and _reach(first) * abs(factor) <= LIMIT
    return (behind, factor) if fits else None


def wide_nodes(graph: gs.Graph, ranges: Mapping[str, Range]) -> dict[str, float]:
    """Nodes that take or give values beyond `LIMIT`, by name, with the largest magnitude of each.

    A mask's minus infinity, below `MASKED` and on its way to a softmax, is none.
    """
    found: dict[str, float] = {}
    ends = {t.name for t in graph.outputs}
    for node in graph.nodes:
        given = [_beyond(t, ranges, clamps(node)) for t in node.inputs]
        made = [_beyond(t, ranges, t.name not in ends and _all_clamp(t)) for t in node.outputs]
        reach = max((*given, *made), default=0.0)
        if reach > LIMIT:
            found[str(node.name)] = reach
    return found


def _beyond(tensor: gs.Tensor, ranges: Mapping[str, Range], clamped: bool) -> float:
    known = ranges.get(tensor.name)
    if known is None:
        return 0.0
    masks = clamped and known.low <= MASKED and known.high <= LIMIT
    return max(known.high, 0.0) if masks else _reach(known)


def _all_clamp(tensor: gs.Tensor) -> bool:
    return bool(tensor.outputs) and all(clamps(user) for user in tensor.outputs)


def _reach(known: Range) -> float:
    """The largest magnitude; infinite where a value is no number."""
    ends = abs(known.low), abs(known.high)
    return math.inf if any(map(math.isnan, ends)) else max(ends)
