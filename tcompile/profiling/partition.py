"""Partitioning a model into what a profile knows: stem, attention and MLP halves, reducers, head.

It is cut at tensors of the residual stream. A part is what its last tensor needs and the parts
before it do not; so every node lies in one part, and the times of all parts add up to the model's.

A reduced graph is cut at the same tensors: nodes keep their names, and what reads the
stream behind a site reads the reduced one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.errors import InternalError
from tcompile.core.graph import consumers, is_const
from tcompile.core.subgraph import extract, needed_nodes
from tcompile.passes.reduce import ReducedGraph

Role = Literal["stem", "attn", "mlp", "reducer", "head"]


@dataclass(frozen=True)
class Segment:
    """Some of a model's nodes, which run one after another.

    Attributes:
        role: what they are.
        block: of a half, from 0; that of the site of a reducer; -1 of stem and head.
        nodes: their names.
        start, end: the stream as it enters and leaves; the stem has no start, the head no end.
        site: of a reducer.
    """

    role: Role
    block: int
    nodes: frozenset[str]
    start: str = ""
    end: str = ""
    site: str = ""


def partition(
    dense: gs.Graph, analysis: Analysis, reduced: ReducedGraph | None = None
) -> list[Segment]:
    """The parts of a model in the order in which they run, those without nodes left out.

    Args:
        dense: in normal form, as it was analysed.
        reduced: the same model reduced (at `attn`, `block` or `output` sites); None: the dense one.
    """
    if reduced is None:
        return _Partitioner(dense, analysis, dense, {}).parts()
    return _Partitioner(dense, analysis, reduced.graph, reduced.written).parts()


class _Partitioner:
    def __init__(
        self, dense: gs.Graph, analysis: Analysis, graph: gs.Graph, written: Mapping[str, str]
    ) -> None:
        self.analysis, self.graph, self.written = analysis, graph, written
        self.dense_tensors, self.tensors = dense.tensors(), graph.tensors()
        self.nodes = {n.name: n for n in graph.nodes}
        self.seen: set[str] = set()
        self.found: list[Segment] = []

    def parts(self) -> list[Segment]:
        blocks = self.analysis.blocks
        start = self._entry(blocks[0].stream_in)
        self._add("stem", -1, "", start)
        for block in blocks:
            start = self._half("attn", block.index, start, block.after_attention)
            if block.stream_out != block.after_attention:
                start = self._half("mlp", block.index, start, block.stream_out, kind="block")
        self._written_for_outputs()
        rest = frozenset(self.nodes) - self.seen
        if rest:
            self.found.append(Segment("head", -1, rest, start))
        return self._with_shared_moved()

    def _half(self, role: Role, block: int, start: str, end: str, kind: str = "attn") -> str:
        """Add a half and the reducer behind it; gives the tensor that enters what follows."""
        self._add(role, block, start, end)
        entry = self._entry(end)
        if entry != end:
            self._add("reducer", block, end, entry, f"{kind}:{block}")
        return entry

    def _add(self, role: Role, block: int, start: str, end: str, site: str = "") -> None:
        if end not in self.tensors:
            raise InternalError(f"'{end}' is not in the graph any more", where="partition")
        nodes = needed_nodes([self.tensors[end]], self.seen)
        self.seen |= nodes
        if nodes:
            self.found.append(Segment(role, block, frozenset(nodes), start, end, site))

    def _written_for_outputs(self) -> None:
        """Give a step what it wrote for outputs alone (owners, sizes): its own work, not the
        head's. So is all of a step at the output, which lies among the head's nodes."""
        parts = {p.site: i for i, p in enumerate(self.found) if p.role == "reducer"}
        last = self.analysis.blocks[-1].index
        for site in (*parts, "output"):
            nodes = {n for n in self.nodes if self.written.get(n) == site} - self.seen
            self.seen |= nodes
            if nodes and site in parts:
                old = self.found[parts[site]]
                self.found[parts[site]] = replace(old, nodes=old.nodes | nodes)
            elif nodes:
                self.found.append(Segment("reducer", last, frozenset(nodes), site=site))

    def _entry(self, stream: str) -> str:
        """The tensor that stands for a tensor of the dense stream after the site there."""
        for node, position in consumers(self.dense_tensors[stream]):
            kept = self.nodes.get(node.name)
            if kept is not None and kept.op == node.op and position < len(kept.inputs):
                return str(kept.inputs[position].name)
        return stream

    def _with_shared_moved(self) -> list[Segment]:
        """Move what several parts read beside the stream, such as the rows of a rotary table, to
        where it is made once: by the reducer before, or the stem."""
        owner = {n: i for i, p in enumerate(self.found) for n in p.nodes}
        home = 0
        moves: dict[str, int] = {}
        for i, part in enumerate(self.found):
            if part.role in ("stem", "reducer"):
                home = i
            elif part.role != "head":
                for name in self._shared(part, owner, i):
                    moves[name] = home
        if not moves:
            return self.found
        nodes = [set(p.nodes) for p in self.found]
        for name, to in moves.items():
            nodes[owner[name]].discard(name)
            nodes[to].add(name)
        return [replace(p, nodes=frozenset(n)) for p, n in zip(self.found, nodes, strict=True) if n]

    def _shared(self, part: Segment, owner: dict[str, int], at: int) -> set[str]:
        """Nodes off the path of the stream that a later part reads too."""
        path, below = set[str](), {part.start}
        mine = [n for n in self.graph.nodes if n.name in part.nodes]
        for node in mine:
            if any(t.name in below for t in node.inputs):
                path.add(node.name)
                below.update(o.name for o in node.outputs)
        read = [
            o
            for n in mine
            if n.name not in path
            for o in n.outputs
            if any(owner.get(c.name, at) != at for c, _ in consumers(o))
        ]
        needed = needed_nodes(read)
        return {n for n in needed if n in part.nodes and n not in path}


def subgraph(graph: gs.Graph, part: Segment) -> gs.Graph:
    """A part as a graph of its own; its outputs are all that others read of it."""
    names = [o.name for n in graph.nodes if n.name in part.nodes for o in n.outputs]
    inside = part.nodes
    asked = {o.name for o in graph.outputs}
    tensors = graph.tensors()
    outputs = [
        n
        for n in names
        if n in asked or any(c.name not in inside for c, _ in consumers(tensors[n]))
    ]
    return extract(graph, inside, outputs)


def chained(graph: gs.Graph, parts: Sequence[Segment]) -> gs.Graph:
    """Parts of one structure as a graph, each reading what the one before it gave.

    What they read beside the stream (masks, tables, sizes) becomes inputs, one for each tensor.
    """
    copy = graph.copy()
    tensors = copy.tensors()
    for before, part in itertools.pairwise(parts):
        if before.end == part.start:
            continue
        for node in copy.nodes:
            if node.name in part.nodes:
                for i, tensor in enumerate(node.inputs):
                    if tensor.name == part.start and not is_const(tensor):
                        node.inputs[i] = tensors[before.end]
    nodes = frozenset().union(*(p.nodes for p in parts))
    return extract(copy, nodes, [parts[-1].end])
