"""One spelling for a normalisation over keys: Softmax.

Written by hand it is exp and a sum, with or without the largest logit taken off first, a LogSoftmax
and an exp, or x − logsumexp(x) and an exp. Softmax-plus-one, exp(x) / (1 + Σ exp(x)), is a Softmax
with one more column of zeros, which is cut off after. Views around a Softmax that undo each other
go.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.core.graph import (
    attr,
    is_const,
    is_free,
    is_standard,
    large,
    producer,
    reduced_axes,
    shape,
    value,
)
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.op_traits import RESHAPES
from tcompile.passes.normalize.products import Nodes, replace_by
from tcompile.passes.normalize.turned_attention import above_logits
from tcompile.passes.normalize.views import MOST, is_view, named_axes, through

#: What is added to a sum of 1 or more and lost in fp32.
_LOST = 2.0**-25


def spell_softmax(graph: gs.Graph, loose: Collection[str] = ()) -> int:
    """One sweep; needs inferred shapes. Returns how many were rewritten.

    Args:
        loose: as `simplify`.
    """
    count = 0
    for node in list(graph.nodes):
        if not is_standard(node) or not node.outputs or node.outputs[0].shape is None:
            continue
        if node.op == "Exp":
            count += _exp_of_log(graph, node)
        elif node.op in ("Div", "Mul"):
            count += _ratio(graph, node)
        elif node.op == "Softmax":
            count += _shifted(node) or _unwrap(graph, node, loose) or _column(graph, node)
    if count:
        toposort(drop_dead(graph))
    return count


def _exp_of_log(graph: gs.Graph, node: gs.Node) -> int:
    """exp(LogSoftmax(x)), exp(x − ReduceLogSumExp(x))."""
    maker = producer(node.inputs[0])
    if maker is None:
        return 0
    if maker.op == "LogSoftmax":
        source, axis = maker.inputs[0], int(attr(maker, "axis", -1))
    elif maker.op == "Sub":
        source = maker.inputs[0]
        total = _along(maker.inputs[1], source, ("ReduceLogSumExp",))
        if total is None:
            return 0
        axis = total
    else:
        return 0
    node.op, node.attrs, node.inputs = "Softmax", {"axis": axis}, [source]
    return 1


def _shifted(node: gs.Node) -> int:
    """Softmax(x − max(x)): it takes the largest off by itself."""
    maker = producer(node.inputs[0])
    if maker is None or maker.op != "Sub" or maker.inputs[0].shape is None:
        return 0
    axis = int(attr(node, "axis", -1)) % len(maker.inputs[0].shape)
    if _along(maker.inputs[1], maker.inputs[0], ("ReduceMax",)) != axis:
        return 0
    node.inputs[0] = maker.inputs[0]
    return 1


def _along(tensor: gs.Tensor, source: gs.Tensor, ops: Collection[str]) -> int | None:
    """The axis of `source` that one of these ops takes together, where the tensor is its result
    with that axis left as 1."""
    node = producer(tensor)
    while node is not None and node.op in RESHAPES:
        node = producer(node.inputs[0])
    if node is None or node.op not in ops or node.inputs[0] is not source:
        return None
    if source.shape is None or tensor.shape is None:
        return None
    if len(node.inputs) > 1 and not (node.inputs[1].is_empty() or is_const(node.inputs[1])):
        return None
    axes = reduced_axes(node)
    wanted = [1 if i in axes else d for i, d in enumerate(source.shape)]
    return axes[0] if len(axes) == 1 and list(tensor.shape) == wanted else None


# ---- exp(x) / sum --------------------------------------------------------------------------------


def _ratio(graph: gs.Graph, node: gs.Node) -> int:
    """exp(y) / Σ exp(y), the product with the reciprocal, and (exp(y)·V) / Σ exp(y)."""
    for part, other in ((0, 1), (1, 0)) if node.op == "Mul" else ((0, 1),):
        total: gs.Tensor | None = node.inputs[other]
        if node.op == "Mul":
            inverse = producer(node.inputs[other])
            total = (
                inverse.inputs[0] if inverse is not None and inverse.op == "Reciprocal" else None
            )
        if total is None:
            continue
        top = producer(node.inputs[part])
        if top is None:
            continue
        late = top if top.op == "MatMul" else None
        exp = producer(top.inputs[0]) if late is not None else top
        if exp is None or exp.op != "Exp" or exp.inputs[0].shape is None:
            continue
        found = _sum_of(exp, total)
        if found is None or (found.sink is not None and is_free(found.x.shape[found.axis])):
            continue
        if late is not None:
            last = len(exp.outputs[0].shape) - 1
            if found.axis != last or len(late.outputs[0].outputs) != 1:
                continue
            if list(node.outputs[0].shape) != list(late.outputs[0].shape):
                continue
        if list(node.outputs[0].shape) != list(node.inputs[part].shape):
            continue
        nodes = Nodes(graph, node)
        made = _softmax(nodes, found)
        if late is not None:
            made = nodes.op("MatMul", [made, late.inputs[1]], late.outputs[0].shape)
        replace_by(graph, node, made)
        return 1
    return 0


@dataclass(frozen=True, eq=False)
class _Sum:
    """Σ exp(x − shift) + a sink, over an axis.

    Attributes:
        x: the logits.
        shift: [.., 1] taken off them, or None.
        sink: a logit of its own that the sum has besides: a number, a tensor [.., 1], or None.
        shifted: whether `sink` is counted from the shift.
    """

    x: gs.Tensor
    axis: int
    shift: gs.Tensor | None = None
    sink: Any = None
    shifted: bool = False


def _sum_of(exp: gs.Node, total: gs.Tensor) -> _Sum | None:
    """What a sum goes over, if it is one of these exponentials; None where it is not."""
    powers = exp.outputs[0]
    axis, more = _plain_sum(powers, total), None
    if axis is None:
        adder = producer(total)
        while adder is not None and adder.op in RESHAPES:
            adder = producer(adder.inputs[0])
        if adder is None or adder.op not in ("Add", "Max", "Clip"):
            return None
        axis = next((a for t in adder.inputs if (a := _plain_sum(powers, t)) is not None), None)
        if axis is None or adder.outputs[0].shape != total.shape:
            return None
        others = [t for t in adder.inputs if _plain_sum(powers, t) is None and not t.is_empty()]
        if len(others) != 1 or (adder.op == "Clip" and adder.inputs[1] is not others[0]):
            return None  # a Clip may have a lower bound alone
        more = (adder.op, others[0])
    x, shift = exp.inputs[0], None
    maker = producer(x)
    if maker is not None and maker.op == "Sub" and _reaches(maker, axis):
        x, shift = maker.inputs
    if more is None:
        return _Sum(x, axis, shift)
    op, beside = more
    largest = shift is not None and _along(shift, x, ("ReduceMax",)) == axis
    if is_const(beside):
        least = value(beside).astype(np.float64)
        lost = np.abs(least) <= _LOST if op == "Add" else least <= 1
        if largest and lost.all():
            return _Sum(x, axis, shift)  # the sum is 1 or more
        if op != "Add" or not (least > 0).all() or least.size != 1:
            return None
        return _Sum(x, axis, shift, float(np.log(least.reshape(()))), True)
    power = producer(beside)
    if op != "Add" or power is None or power.op != "Exp":
        return None
    made = producer(power.inputs[0])
    if shift is not None and made is not None and made.op == "Neg" and made.inputs[0] is shift:
        return _Sum(x, axis, shift, 0.0)
    if shift is not None and made is not None and made.op == "Sub" and made.inputs[1] is shift:
        return _Sum(x, axis, shift, made.inputs[0])
    return _Sum(x, axis, None, power.inputs[0]) if shift is None else None


def _plain_sum(powers: gs.Tensor, total: gs.Tensor) -> int | None:
    return _along(total, powers, ("ReduceSum", "ReduceL1"))


def _reaches(sub: gs.Node, axis: int) -> bool:
    """Tell whether what is taken off is one number for all along the axis."""
    x, shift = sub.inputs
    if is_const(x) or x.shape is None or shift.shape is None:
        return False
    missing = len(x.shape) - len(shift.shape)
    if missing < 0 or list(sub.outputs[0].shape) != list(x.shape):
        return False
    return axis < missing or bool(shift.shape[axis - missing] == 1)


def _softmax(nodes: Nodes, found: _Sum) -> gs.Tensor:
    """Write it."""
    x, axis = found.x, found.axis
    if found.sink is None:
        return nodes.op("Softmax", [x], x.shape, axis=axis)
    one = [1 if i == axis else int(d) for i, d in enumerate(x.shape)]
    longer = [int(d) + (i == axis) for i, d in enumerate(x.shape)]
    sink = found.sink
    if isinstance(sink, float):
        sink = nodes.like(np.full([1] * len(one), sink), x)
    if found.shifted and found.shift is not None:
        sides = [[int(d) for d in t.shape] for t in (sink, found.shift)]
        sink = nodes.op("Add", [sink, found.shift], np.broadcast_shapes(*map(tuple, sides)))
    if list(sink.shape) != one:
        first = nodes.op("Slice", [x, *(nodes.ints([n]) for n in (0, 1, axis))], one)
        sizes = nodes.op("Shape", [first], [len(one)])
        sizes.dtype = np.dtype(np.int64)
        sink = nodes.op("Expand", [sink, sizes], one)
    columns = nodes.op("Concat", [x, sink], longer, axis=axis)
    chances = nodes.op("Softmax", [columns], longer, axis=axis)
    bounds = [nodes.ints([n]) for n in (0, int(x.shape[axis]), axis)]
    return nodes.op("Slice", [chances, *bounds], x.shape)


# ---- sink columns --------------------------------------------------------------------------------


def _column(graph: gs.Graph, softmax: gs.Node) -> int:
    """A stored column beside the logits, one number for all queries: from the queries there are.

    Written as 0 · q + number, so that it has as many rows as the logits have.
    """
    joined = producer(softmax.inputs[0])
    if joined is None or joined.op != "Concat" or joined.outputs[0].shape is None:
        return 0
    last = len(joined.outputs[0].shape) - 1
    axes = {int(attr(n, "axis", -1)) % (last + 1) for n in (softmax, joined)}
    live = [t for t in joined.inputs if _stored_column(t) is None]
    above = above_logits(live[0]) if axes == {last} and len(live) == 1 else None
    if above is None or any(n.op == "Transpose" for n in above[1]):
        return 0
    q, count = above[0].inputs[0], 0
    if list(q.shape[:-1]) != list(live[0].shape[:-1]):
        return 0
    nodes = Nodes(graph, joined)
    for i, tensor in enumerate(joined.inputs):
        number = _stored_column(tensor)
        if number is None or last < 1 or number.shape[-2] != 1:
            continue
        first = nodes.op("Slice", [q, *(nodes.ints([n]) for n in (0, 1, last))], [*q.shape[:-1], 1])
        none = nodes.op("Mul", [first, nodes.like(np.zeros(()), q)], first.shape)
        made = nodes.op("Add", [none, nodes.like(number, q)], tensor.shape)
        joined.inputs[i] = made
        count += 1
    return count


def _stored_column(tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
    """The stored numbers of a tensor that is constant, or that repeats a constant, each axis along
    which they are the same as 1; None where it is computed."""
    maker = producer(tensor)
    if tensor.shape is None:
        return None
    rank = len(tensor.shape)
    if maker is not None and maker.op == "Expand" and is_const(maker.inputs[0]):
        tensor = maker.inputs[0]
    if not is_const(tensor) or large(tensor):
        return None
    found = value(tensor)
    found = found.reshape([1] * (rank - found.ndim) + list(found.shape))
    for axis in range(found.ndim):
        first = found.take([0], axis)
        found = first if (found == first).all() else found
    return found


# ---- views around it -----------------------------------------------------------------------------


def _unwrap(graph: gs.Graph, node: gs.Node, loose: Collection[str]) -> int:
    """Softmax between views that undo each other: along the axis that it is before them."""
    before: list[gs.Node] = []
    above = producer(node.inputs[0])
    while above is not None and is_view(above, loose) and len(before) < MOST:
        before.insert(0, above)
        source = above.inputs[0]
        axis = int(attr(node, "axis", -1)) % len(node.inputs[0].shape)
        axes = named_axes(source)
        seen = through(axes, before)
        place = axes.index(seen[axis]) if seen is not None and seen[axis] in axes else -1
        if seen is not None and seen[axis] and (place == len(axes) - 1 or axis < len(seen) - 1):
            end = _undone(graph, node, axes, before, loose)
            if end is not None:
                out = end.outputs[0]
                end.outputs.clear()
                node.inputs[0], node.outputs = source, [out]
                node.attrs["axis"] = place
                return 1
        above = producer(source)
    return 0


def _undone(
    graph: gs.Graph, node: gs.Node, axes: ax.Axes, before: list[gs.Node], loose: Collection[str]
) -> gs.Node | None:
    """The view behind a Softmax after which all axes are what they were."""
    behind: list[gs.Node] = []
    out = node.outputs[0]
    while len(out.outputs) == 1 and len(behind) < MOST:
        if any(out is given for given in graph.outputs):
            return None
        reader = out.outputs[0]
        if not is_view(reader, loose) or reader.inputs[0] is not out:
            return None
        behind.append(reader)
        out = reader.outputs[0]
        if through(axes, [*before, *behind]) == axes and shape(out) == shape(before[0].inputs[0]):
            return reader
    return None
