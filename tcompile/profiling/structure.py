"""A model's parts before and after a method's steps, by signature: what a profile must hold."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.copies import copied
from tcompile.core.errors import UsageError
from tcompile.core.graph import is_const, replace_uses
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.site import SiteName
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.passes.reduce import reduce_graph
from tcompile.profiling.partition import Role, Segment, partition


@dataclass(frozen=True, eq=False)
class PartitionedGraph:
    """A graph and its parts.

    Attributes:
        tokens: in the parts behind the last step, prefix included.
        parts: in order.
        step: index of the last reducer in `parts`; -1 where nothing is reduced.
    """

    graph: gs.Graph
    tokens: int
    parts: tuple[Segment, ...]
    step: int = -1

    def behind(self, *roles: Role) -> list[Segment]:
        """Return the parts behind the last step, role by role."""
        return [p for role in roles for p in self.parts[self.step + 1 :] if p.role == role]

    def halves(self) -> dict[str, list[Segment]]:
        """Return the halves behind the last step, alike ones together."""
        found: dict[str, list[Segment]] = {}
        for part in self.behind("attn", "mlp"):
            found.setdefault(part.signature, []).append(part)
        return found


def partition_dense(dense: gs.Graph, analysis: Analysis) -> PartitionedGraph:
    """Return the dense model's parts."""
    return PartitionedGraph(dense, analysis.shape.tokens, partition(dense, analysis))


def partition_at(dense: gs.Graph, method: Method, tokens: int) -> PartitionedGraph:
    """Return the parts of the model when a method comes down to so many tokens, as early as it can.

    Raises:
        UsageError: it cannot come down that far.
    """
    places = method.descend(tokens - method.context.shape.prefix)
    if not places:
        raise UsageError(f"{tokens} tokens are all there are", where="profile")
    return partition_steps(dense, method, [(p.site, p.keep) for p in places])


def partition_steps(
    dense: gs.Graph, method: Method, steps: list[tuple[str, int]], *, deduplicate: bool = False
) -> PartitionedGraph:
    """Return the parts of the model with these steps of a method: (site, patches that stay).

    Args:
        deduplicate: leave out nodes that compute what others do.
    """
    schedule = method.schedule([Place(SiteName(site), keep) for site, keep in steps])
    made = reduce_graph(dense, method.analysis, schedule, outputs=method.outputs)
    if deduplicate:
        made = replace(made, graph=_without_twins(made.graph, made.written))
    parts = partition(dense, method.analysis, made)
    last = max(i for i, p in enumerate(parts) if p.role == "reducer" and p.site == steps[-1][0])
    tokens = method.context.shape.prefix + steps[-1][1]
    return PartitionedGraph(made.graph, tokens, parts, last)


def _without_twins(graph: gs.Graph, written: Container[str]) -> gs.Graph:
    """Return the graph with one of each set of nodes of the same operator, attributes and inputs:
    the one that was there before anything was written. The given graph is left as it is.

    Scores recompute products of the attention beside it. A runtime that fuses attention pays for
    that; one that does not, such as ONNX Runtime on a CPU, finds the common subexpressions and
    computes them once. A step that is timed by itself must leave them out as well.

    Args:
        written: names of the nodes that the reduction wrote.
    """
    made = copied(graph)
    toposort(made)
    asked = {o.name for o in made.outputs}
    first: dict[str, gs.Node] = {}
    nodes = sorted(made.nodes, key=lambda n: n.name in written)
    # What was written may read what was there, never the other way round up to the site, so going
    # through the old ones first keeps every input's twin known before it is read.
    for node in nodes:
        key = f"{node.domain}:{node.op}{_attributes(node)}({','.join(map(_name, node.inputs))})"
        twin = first.setdefault(key, node)
        if twin is not node and not any(o.name in asked for o in node.outputs):
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                replace_uses(old, new)
            node.outputs.clear()
    made.nodes[:] = [n for n in made.nodes if n.outputs]
    return toposort(drop_dead(made))


def _name(tensor: gs.Tensor) -> str:
    if is_const(tensor) and tensor.values.size <= 8:
        return f"{tensor.values.dtype}{tensor.values.tolist()}"
    return str(tensor.name)


def _attributes(node: gs.Node) -> str:
    def text(given: object) -> str:
        if isinstance(given, gs.Constant):
            return str(given.values.tolist())
        return str(given)

    return "{" + ",".join(f"{k}={text(v)}" for k, v in sorted(node.attrs.items())) + "}"


@dataclass(frozen=True)
class Layout:
    """Parts that a model has, by signature, with a method and without.

    Attributes:
        stem: signature, or empty.
        dense: block → (attention half, MLP half or empty), as in the dense model.
        reduced: the same once tokens have left.
        head_dense, head: what follows the blocks, or empty.
    """

    stem: str
    dense: tuple[tuple[str, str], ...]
    reduced: tuple[tuple[str, str], ...]
    head_dense: str
    head: str


def layout_of(dense: gs.Graph, method: Method) -> Layout:
    """Return the layout of a model under a method; one early step shows it."""
    before = partition_dense(dense, method.analysis)
    shape, rule = method.context.shape, method.sites[0]
    keep = -(-shape.patches * 3 // (4 * rule.granularity)) * rule.granularity
    after = partition_steps(dense, method, [(rule.name, keep)])
    whole, later = (_by_block(given, shape.blocks) for given in (before, after))
    stem, head_dense, head = (
        next((p.signature for p in found), "")
        for found in (before.behind("stem"), before.behind("head"), after.behind("head"))
    )
    reduced = tuple((a or b, c or d) for (a, c), (b, d) in zip(later, whole, strict=True))
    return Layout(stem, whole, reduced, head_dense, head)


def _by_block(given: PartitionedGraph, blocks: int) -> tuple[tuple[str, str], ...]:
    found = {(p.block, p.role): p.signature for p in given.behind("attn", "mlp")}
    return tuple((found.get((b, "attn"), ""), found.get((b, "mlp"), "")) for b in range(blocks))
