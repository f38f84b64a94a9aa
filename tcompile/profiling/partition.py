"""Partitioning a model into what a profile knows: stem, attention and MLP halves, reducers, head.

It is cut at tensors of the residual stream. A part is what its last tensor needs and the parts
before it do not; so every node lies in one part, and the times of all parts add up to the model's.

A reduced graph is cut at the same tensors: nodes keep their names, and what reads the
stream behind a site reads the reduced one.

A part has a signature: what makes two parts the same to a profile, which is their structure, not
their weights or token count.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.copies import copied
from tcompile.core.errors import InternalError
from tcompile.core.graph import consumers, is_const, producer, tensors_of, value
from tcompile.core.subgraph import extract, needed_nodes
from tcompile.passes.reduce import ReducedGraph

Role = Literal["stem", "attn", "mlp", "reducer", "head"]
#: Floats of as many values at most count by value in a signature, others by shape.
_SMALL = 8


@dataclass(frozen=True)
class Segment:
    """Some of a model's nodes, which run one after another.

    Attributes:
        role: what they are.
        block: of a half, from 0; that of the site of a reducer; -1 of stem and head.
        nodes: their names.
        start, end: the stream as it enters and leaves; the stem has no start, the head no end.
        site: of a reducer.
        signature: of the structure.
    """

    role: Role
    block: int
    nodes: frozenset[str] = frozenset()
    start: str = ""
    end: str = ""
    site: str = ""
    signature: str = ""


def partition(
    dense: gs.Graph, analysis: Analysis, reduced: ReducedGraph | None = None
) -> tuple[Segment, ...]:
    """Return the parts of a model in the order in which they run, those without nodes left out.

    Args:
        dense: in normal form, as it was analysed.
        reduced: the same model reduced (at `attn`, `block` or `output` sites); None: the dense one.
    """
    graph, written = (dense, {}) if reduced is None else (reduced.graph, reduced.written)
    dense_tensors, tensors = tensors_of(dense), tensors_of(graph)
    nodes = {n.name: n for n in graph.nodes}
    parts: list[Segment] = []
    owner: dict[str, int] = {}

    def add(role: Role, block: int, start: str, end: str, site: str = "") -> None:
        if end not in tensors:
            raise InternalError(f"'{end}' is not in the graph any more", where="partition")
        needed = needed_nodes([tensors[end]], owner)
        owner.update(dict.fromkeys(needed, len(parts)))
        if needed:
            parts.append(Segment(role, block, start=start, end=end, site=site))

    def entry(stream: str) -> str:
        """Return the tensor that stands for one of the dense stream after the site there."""
        for node, position in consumers(dense_tensors[stream]):
            kept = nodes.get(node.name)
            if kept is not None and kept.op == node.op and position < len(kept.inputs):
                return str(kept.inputs[position].name)
        return stream

    blocks = analysis.blocks
    start = entry(blocks[0].stream_in)
    add("stem", -1, "", start)
    for block in blocks:
        ends: list[tuple[Role, str, str]] = [("attn", "attn", block.after_attention)]
        if block.stream_out != block.after_attention:
            ends.append(("mlp", "block", block.stream_out))
        for role, kind, end in ends:
            add(role, block.index, start, end)
            start = entry(end)
            if start != end:
                add("reducer", block.index, end, start, f"{kind}:{block.index}")
    # What a step wrote for outputs alone (owners, sizes) is its own work, not the head's. So is all
    # of a step at the output, which lies among the head's nodes.
    steps = {p.site: i for i, p in enumerate(parts) if p.role == "reducer"}
    if any(written.get(n) == "output" for n in nodes.keys() - owner.keys()):
        steps["output"] = len(parts)
        parts.append(Segment("reducer", blocks[-1].index, site="output"))
    rest = [n for n in nodes if n not in owner]
    owner |= {n: steps.get(written.get(n, ""), len(parts)) for n in rest}
    parts.append(Segment("head", -1, start=start))
    owner |= _shared(graph, parts, owner)
    inside: list[set[str]] = [set() for _ in parts]
    for name, i in owner.items():
        inside[i].add(name)
    return tuple(
        replace(p, nodes=frozenset(names), signature=signature(graph, names, p.start))
        for p, names in zip(parts, inside, strict=True)
        if names
    )


def _shared(graph: gs.Graph, parts: Sequence[Segment], owner: Mapping[str, int]) -> dict[str, int]:
    """Return where what several parts read beside the stream, such as the rows of a rotary table,
    is made once: node → the reducer before, or the stem."""
    home, found = 0, dict[str, int]()
    for i, part in enumerate(parts):
        if part.role in ("stem", "reducer"):
            home = i
        elif part.role != "head":
            mine = [n for n in graph.nodes if owner[n.name] == i]
            path, below = set[str](), {part.start}
            for node in mine:
                if any(t.name in below for t in node.inputs):
                    path.add(node.name)
                    below.update(o.name for o in node.outputs)
            off = [o for n in mine if n.name not in path for o in n.outputs]
            # A node that is no longer in the graph may still be listed as a reader.
            read = [o for o in off if any(owner.get(c.name, i) != i for c, _ in consumers(o))]
            needed = needed_nodes(read) - path
            found |= {n: home for n in needed if owner[n] == i}
    return found


def subgraph(graph: gs.Graph, part: Segment) -> gs.Graph:
    """Return a part as a graph of its own; its outputs are all that others read of it.

    What it reads of sizes (of the batch, say) it reads off the shapes themselves.
    """
    names = [o.name for n in graph.nodes if n.name in part.nodes for o in n.outputs]
    inside = part.nodes | _sizes(graph, part.nodes)
    asked = {o.name for o in graph.outputs}
    tensors = tensors_of(graph)
    outputs = [
        n
        for n in names
        if n in asked or any(c.name not in inside for c, _ in consumers(tensors[n]))
    ]
    return extract(graph, inside, outputs)


def chained(graph: gs.Graph, parts: Sequence[Segment]) -> gs.Graph:
    """Return parts of one structure as a graph, each reading what the one before it gave.

    What they read beside the stream (masks, tables) becomes inputs, one for each tensor; sizes are
    read off the shapes.
    """
    copy = copied(graph)
    tensors = tensors_of(copy)
    for before, part in itertools.pairwise(parts):
        if before.end == part.start:
            continue
        for node in copy.nodes:
            if node.name in part.nodes:
                for i, tensor in enumerate(node.inputs):
                    if tensor.name == part.start and not is_const(tensor):
                        node.inputs[i] = tensors[before.end]
    nodes = frozenset().union(*(p.nodes for p in parts))
    return extract(copy, nodes | _sizes(copy, nodes), [parts[-1].end])


def _sizes(graph: gs.Graph, nodes: Collection[str]) -> set[str]:
    """Nodes outside some that compute whole numbers for them from shapes alone.

    A part needs the true ones: a Resize to a batch of 0 fails.
    """
    found = set[str]()
    for node in graph.nodes:
        if node.name in nodes:
            found |= set[str]().union(*(_of_shapes(t) or () for t in node.inputs))
    return found - set(nodes)


def _of_shapes(tensor: gs.Tensor) -> set[str] | None:
    """Nodes that a tensor of whole numbers follows from shapes by; None where it does not."""
    if is_const(tensor) or not tensor.name:
        return set()
    node = producer(tensor)
    if node is None or isinstance(tensor.dtype, int | None):  # bfloat16, or unknown
        return None
    if np.dtype(tensor.dtype).kind not in "iu":
        return None
    if node.op in ("Shape", "Size"):
        return {str(node.name)}
    below = [_of_shapes(t) for t in node.inputs]
    if None in below:
        return None
    return {str(node.name)}.union(*(b for b in below if b))


def signature(graph: gs.Graph, nodes: Collection[str], start: str) -> str:
    """Return twelve hex digits of operators, attributes, how they are joined, and weights' shapes.

    Whole numbers among the inputs (what to reshape to, where to slice) count by how many there are:
    they follow from the token count and the weights. Floats count by value where they are few
    (scales, epsilons), by shape where they are many.

    Args:
        nodes: names of those of a part.
        start: the stream as it enters; empty: it does not.
    """
    mine = [n for n in graph.nodes if n.name in nodes]
    names: dict[str, str] = {start: "stream"} if start else {}
    lines: list[str] = []
    for i, node in enumerate(mine):
        inputs = [_input(t, names) for t in node.inputs]
        attrs = [f"{k}={_attribute(v)}" for k, v in sorted(node.attrs.items())]
        lines.append(f"{node.domain or ''}:{node.op}({','.join(inputs)}){{{','.join(attrs)}}}")
        for j, out in enumerate(node.outputs):
            names[out.name] = f"%{i}.{j}"
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _input(tensor: gs.Tensor, names: dict[str, str]) -> str:
    if not tensor.name:
        return "-"
    if not is_const(tensor):
        rank = "?" if tensor.shape is None else len(tensor.shape)
        return names.get(tensor.name) or f"side[{rank}]{_name(tensor.dtype or np.float32)}"
    dims, name = tuple(tensor.shape), _name(tensor.dtype)
    if np.dtype(tensor.dtype).kind in "iub":
        return f"{name}[{math.prod(dims)}]"
    if math.prod(dims) <= _SMALL:
        return f"{name}{[float(f'{v:.6g}') for v in value(tensor).reshape(-1)]}"
    return f"{name}{list(dims)}"


@lru_cache(maxsize=64)
def _name(dtype: Any) -> str:
    """The name of an element type, which numpy makes anew each time."""
    return str(np.dtype(dtype))


def _attribute(given: Any) -> str:
    if isinstance(given, gs.Tensor):
        return f"tensor{list(given.shape or ())}"
    if isinstance(given, float):
        return f"{given:.6g}"
    return str(given)
