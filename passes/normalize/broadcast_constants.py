"""Let constants that were expanded over a free batch broadcast instead.

`Expand(mask [1,1,1,N], [batch,1,N,N])` hides that a mask is constant. Where everything that reads
it broadcasts, the expansion over the batch is dropped, and folding does the rest.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import (
    attr,
    axes_argument,
    free_factors,
    ints,
    is_const,
    is_free,
    shape,
    value,
)
from tcompile.core.node_order import toposort
from tcompile.core.op_traits import BROADCASTS, ELEMENTWISE, READS_SHAPE, REDUCES
from tcompile.passes.normalize.batch_values import DimVectors, Values


def drop_batch_expansion(graph: gs.Graph, values: Values, vectors: DimVectors) -> int:
    """Rewrite Expand and ConstantOfShape of constants; returns how many.

    Args:
        values: what depends on the batch alone, of which `vectors` are the targets looked at.
    """
    count = 0
    for node in graph.nodes:
        position = {"Expand": 1, "ConstantOfShape": 0}.get(node.op)
        if position is None or not all(is_const(t) for t in node.inputs[:position]):
            continue
        target = _dims(node.inputs[position], values, vectors)
        batched = [i for i, d in enumerate(target) if len(free_factors(d)[0]) == 1]
        if len(batched) != 1 or any(len(free_factors(d)[0]) > 1 for d in target):
            continue
        axis, size = batched[0] - len(target), target[batched[0]]
        if free_factors(size)[1] != 1 or not _tolerant(graph, node.outputs[0], axis, size):
            continue
        if node.op == "Expand" and size in shape(node.inputs[0]):
            continue
        target[batched[0]] = 1
        name = f"{node.outputs[0].name}/unbatched"
        node.inputs[position] = gs.Constant(name, np.asarray(target, dtype=np.int64))
        count += 1
    return count


def tiles_to_expands(graph: gs.Graph, values: Values, vectors: DimVectors) -> int:
    """Spell a Tile that only repeats axes of size 1 as Expand: one spelling for both ideas."""
    count, live = 0, 0
    for node in list(graph.nodes):
        if node.op != "Tile" or node.inputs[0].shape is None:
            continue
        dims, repeats = shape(node.inputs[0]), _dims(node.inputs[1], values, vectors)
        if repeats and all(r == 1 or d == 1 for d, r in zip(dims, repeats, strict=True)):
            target = [d * r for d, r in zip(dims, repeats, strict=True)]
            node.op = "Expand"
            if any(map(is_free, target)):
                node.inputs[1] = vectors.vector(target)
                live += 1
            else:
                name = f"{node.outputs[0].name}/dims"
                node.inputs[1] = gs.Constant(name, np.asarray(target, np.int64))
            count += 1
    if live:
        toposort(graph)
    return count


def _dims(tensor: gs.Tensor, values: Values, vectors: DimVectors) -> list[int]:
    """A vector of dims that is stored, or computed from those of inputs; empty if it is neither."""
    if is_const(tensor):
        return ints(tensor)
    known = values.get(tensor.name) if vectors.made(tensor) else None
    return [] if known is None else [int(v) for v in known.reshape(-1)]


def _tolerant(graph: gs.Graph, tensor: gs.Tensor, axis: int, size: int) -> bool:
    """Tell whether all readers give the same if the tensor has size 1 along `axis` (negative),
    where it has the free `size` now."""
    if any(tensor is o for o in graph.outputs):
        return False
    for node in tensor.outputs:
        if node.op == "Attention" and node.inputs[3:] and tensor is node.inputs[3]:
            continue
        if node.op == "Expand" and tensor is node.inputs[0]:
            continue  # it expands what has size 1 to the same size
        others = [t for t in node.inputs if t is not tensor and not t.is_empty()]
        broadcasts = node.op in BROADCASTS or (node.op == "MatMul" and axis < -2)
        if broadcasts and any(_batched(t, axis, size) for t in others):
            continue
        after = None if node.outputs[1:] else _after(node, axis)
        if after is None or not _tolerant(graph, node.outputs[0], after, size):
            return False
    return True


def _after(node: gs.Node, axis: int) -> int | None:
    """Return where an axis (negative) of the first input is in the result; None where that is
    unknown, or the node does something along it."""
    if node.op in BROADCASTS or node.op in ELEMENTWISE:
        return axis
    if node.inputs[0].shape is None:
        return None  # not known yet; a later round will tell
    rank = len(node.inputs[0].shape)
    place = axis + rank
    axes = axes_argument(node) if "axis" not in node.attrs else None
    if node.op in REDUCES and axes:
        gone = {a % rank for a in axes}
        if place in gone or attr(node, "keepdims", 1):
            return None if place in gone else axis
        return place - sum(a < place for a in gone) - (rank - len(gone))
    if node.op == "Unsqueeze" and axes:
        made = {a % (rank + len(axes)) for a in axes}
        left = [i for i in range(rank + len(axes)) if i not in made]
        return left[place] - (rank + len(axes))
    if node.op == "Squeeze" and axes:
        gone = {a % rank for a in axes}
        return None if place in gone else place - sum(a < place for a in gone) - (rank - len(gone))
    return None


def _batched(tensor: gs.Tensor, axis: int, size: int) -> bool:
    """Tell whether the tensor brings the batch along that axis by itself, computed from an
    input."""
    if is_const(tensor) or tensor.shape is None or len(tensor.shape) < -axis:
        return False
    return bool(shape(tensor)[axis] == size) and not _from_constants(tensor)


def _from_constants(tensor: gs.Tensor) -> bool:
    """Tell whether only constants and sizes go into it: then it may be about to lose the batch
    too."""
    pending, seen = [tensor], set()
    while pending:
        current = pending.pop()
        if current.name in seen or is_const(current):
            continue
        seen.add(current.name)
        if not current.inputs:
            return False
        if current.inputs[0].op in READS_SHAPE:
            continue  # the size of an input says nothing of what is in it
        pending.extend(current.inputs[0].inputs)
    return True


def gather_nd_to_gather(graph: gs.Graph) -> int:
    """Spell a GatherND that picks along the first axis alone as Gather."""
    count = 0
    for node in graph.nodes:
        if node.op != "GatherND" or attr(node, "batch_dims", 0) or not is_const(node.inputs[1]):
            continue
        index = value(node.inputs[1])
        if index.ndim < 2 or index.shape[-1] != 1:
            continue
        node.op, node.attrs = "Gather", {"axis": 0}
        node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/index", index[..., 0])
        count += 1
    return count
