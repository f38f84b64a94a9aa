"""Let constants that were expanded over a free batch broadcast instead.

`Expand(mask [1,1,1,N], [batch,1,N,N])` hides that a mask is constant. Where everything that reads
it broadcasts, the expansion over the batch is dropped, and folding does the rest.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.transfer import BROADCAST, ELEMENTWISE, REDUCTIONS
from tcompile.ir import BATCH_SENTINEL, attr, axes_argument, ints, is_const, shape, value

_BROADCAST = set(BROADCAST.split())
_ELEMENTWISE = set(ELEMENTWISE.split())
_REDUCTIONS = set(REDUCTIONS.split())


def drop_batch_expansion(graph: gs.Graph) -> int:
    """Rewrite Expand and ConstantOfShape of constants; returns how many."""
    count = 0
    for node in graph.nodes:
        position = {"Expand": 1, "ConstantOfShape": 0}.get(node.op)
        if position is None or not all(is_const(t) for t in node.inputs):
            continue
        target = ints(node.inputs[position])
        batched = [i for i, d in enumerate(target) if d == BATCH_SENTINEL]
        if len(batched) != 1 or not _tolerant(graph, node.outputs[0], batched[0] - len(target)):
            continue
        if node.op == "Expand" and BATCH_SENTINEL in shape(node.inputs[0]):
            continue
        target[batched[0]] = 1
        name = f"{node.outputs[0].name}/unbatched"
        node.inputs[position] = gs.Constant(name, np.asarray(target, dtype=np.int64))
        count += 1
    return count


def tiles_to_expands(graph: gs.Graph) -> int:
    """Spell a Tile that only repeats axes of size 1 as Expand: one spelling for both ideas."""
    count = 0
    for node in graph.nodes:
        if node.op != "Tile" or node.inputs[0].shape is None or not is_const(node.inputs[1]):
            continue
        dims, repeats = shape(node.inputs[0]), ints(node.inputs[1])
        if all(r == 1 or d == 1 for d, r in zip(dims, repeats, strict=True)):
            target = np.asarray([d * r for d, r in zip(dims, repeats, strict=True)], np.int64)
            node.op = "Expand"
            node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/dims", target)
            count += 1
    return count


def _tolerant(graph: gs.Graph, tensor: gs.Tensor, axis: int) -> bool:
    """Whether all readers give the same if the tensor has size 1 along `axis` (negative)."""
    if any(tensor is o for o in graph.outputs):
        return False
    for node in tensor.outputs:
        out = node.outputs[0]
        if node.op == "Attention" and node.inputs[3:] and tensor is node.inputs[3]:
            continue
        if node.op in _BROADCAST and len(node.outputs) == 1:
            others = [t for t in node.inputs if t is not tensor and not t.is_empty()]
            if any(_batched(t, axis) for t in others):
                continue
        elif not (node.op in _ELEMENTWISE or _reduces_others(node, axis)) or node.outputs[1:]:
            return False
        if not _tolerant(graph, out, axis):
            return False
    return True


def _reduces_others(node: gs.Node, axis: int) -> bool:
    """Whether it reduces axes other than this one, which keep their places."""
    axes = axes_argument(node) if node.op in _REDUCTIONS and "axis" not in node.attrs else None
    if node.inputs[0].shape is None:
        return False  # not known yet; a later round will tell
    rank = len(node.inputs[0].shape)
    return (
        bool(axes)
        and bool(attr(node, "keepdims", 1))
        and axis % rank not in [a % rank for a in axes or []]
    )


def _batched(tensor: gs.Tensor, axis: int) -> bool:
    """Whether the tensor brings the batch along that axis by itself, computed from an input."""
    if is_const(tensor) or tensor.shape is None or len(tensor.shape) < -axis:
        return False
    return bool(shape(tensor)[axis] == BATCH_SENTINEL) and not _from_constants(tensor)


def _from_constants(tensor: gs.Tensor) -> bool:
    """Whether only constants go into it (so it may be about to lose the batch as well)."""
    pending, seen = [tensor], set()
    while pending:
        current = pending.pop()
        if current.name in seen or is_const(current):
            continue
        seen.add(current.name)
        if not current.inputs:
            return False
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
