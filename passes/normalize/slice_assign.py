"""Spell assignments to a slice (`x[:, 1:] = y`) as Concat: what lies around the slice, and the new.

The TorchScript exporter writes them as ScatterND with a stored index for every element, in which no
axis can be followed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.core.graph import attr, is_const, is_free, is_standard, value
from tcompile.core.node_order import drop_dead, toposort

#: First and last position + 1 of every axis that is indexed.
Box = list[tuple[int, int]]


def spell_slice_assignments(graph: gs.Graph) -> int:
    """One sweep; needs inferred shapes. Returns how many were written out."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "ScatterND" or not is_standard(node) or not is_const(node.inputs[1]):
            continue
        data, indices, updates = node.inputs
        sizes = data.shape
        if attr(node, "reduction", "none") != "none" or sizes is None:
            continue
        box = _box(value(indices), sizes)
        if box is None:
            continue
        out = node.outputs[0]
        node.outputs.clear()
        _assign(graph, data, updates, box, 0, out)
        count += 1
    if count:
        toposort(drop_dead(graph))
    return count


def _box(indices: npt.NDArray[np.int64], sizes: list[int | str]) -> Box | None:
    """The slices that the indices are all positions of, in order; None where they are not."""
    *shape, width = indices.shape
    if len(shape) != width or indices.size == 0 or width > len(sizes):
        return None  # the updates would have other axes than the data
    if any(is_free(d) for d in sizes[:width]):
        return None
    whole = np.array(sizes[:width], dtype=np.int64)
    found = np.where(indices < 0, indices + whole, indices)
    first = found.reshape(-1, width)[0]
    expected = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) + first
    if not np.array_equal(found, expected) or (first + np.array(shape) > whole).any():
        return None
    return [(int(start), int(start) + n) for start, n in zip(first, shape, strict=True)]


def _assign(
    graph: gs.Graph, data: gs.Tensor, updates: gs.Tensor, box: Box, axis: int, out: gs.Tensor
) -> None:
    """Write `data` with `updates` in the box, whose axes before `axis` it already fills."""
    while axis < len(box) and box[axis] == (0, data.shape[axis]):
        axis += 1
    if axis == len(box):
        graph.nodes.append(_node("Identity", [updates], out))
        return
    (start, end), size = box[axis], data.shape[axis]
    parts: list[gs.Tensor] = []
    for low, high in ((0, start), (start, end), (end, size)):
        if low == high:
            continue
        name = f"{out.name}/{low}:{high}"
        dims = [high - low if i == axis else d for i, d in enumerate(data.shape)]
        part = gs.Variable(name, out.dtype, dims)
        limits = {"from": low, "to": high, "axis": axis}
        stored = [gs.Constant(f"{name}/{k}", np.array([v])) for k, v in limits.items()]
        graph.nodes.append(_node("Slice", [data, *stored], part))
        if (low, high) == (start, end):
            filled = [(0, high - low) if i == axis else b for i, b in enumerate(box)]
            whole, part = part, gs.Variable(f"{name}/assigned", out.dtype, dims)
            _assign(graph, whole, updates, filled, axis + 1, part)
        parts.append(part)
    graph.nodes.append(_node("Concat", parts, out, axis=axis))


def _node(op: str, inputs: list[gs.Tensor], out: gs.Tensor, **attributes: int) -> gs.Node:
    return gs.Node(op, out.name, dict(attributes), inputs, [out])
