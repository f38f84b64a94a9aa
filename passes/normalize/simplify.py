"""Remove what does nothing, so that every exporter's spelling of an idea becomes one.

Removed: Identity, Dropout, and no-op Cast / Reshape / Expand / Transpose / Pad / Slice / Concat;
adding an all-zero or multiplying by an all-one constant; Where with an all-equal constant
condition; attention masks that allow everything; the Softmax → IsNaN → Where guard where no mask
is added. Nothing is fused.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import (
    attr,
    bypass,
    ints,
    is_const,
    is_free,
    is_text,
    large,
    producer,
    value,
)
from tcompile.core.node_order import drop_dead

_SMALL = 1 << 24


def simplify(graph: gs.Graph, loose: Collection[str] = (), sized: Collection[str] = ()) -> int:
    """One sweep; needs inferred shapes. Returns how many nodes or masks went.

    Args:
        loose: tensors that depend on the batch alone, and not as vectors of dims do: what does
            nothing at the size that stands for the batch may well do something at another.
        sized: stored numbers that were computed from sizes: what does nothing with every token may
            well do something with fewer.
    """
    count = 0
    for node in list(graph.nodes):
        if node.domain not in (None, "", "ai.onnx") or not node.outputs:
            continue
        if any(t.name in loose for t in node.inputs):
            continue
        if node.op in _VALUES and any(t.name in sized for t in node.inputs):
            continue
        rule = _RULES.get(node.op)
        source = rule(node) if rule else None
        if source is not None and _same(source, node.outputs[0]):
            count += bypass(graph, node, source)
    for node in graph.nodes:
        if node.op == "Attention" and node.domain in (None, "", "ai.onnx"):
            count += _drop_mask(node)
    if count:
        drop_dead(graph)
    return count


#: Ops in which a number is a value, not a shape.
_VALUES = ("Add", "Sub", "Mul", "Div", "Where")


def _same(a: gs.Tensor, b: gs.Tensor) -> bool:
    if a.shape is None or b.shape is None or None in (a.dtype, b.dtype):
        return False
    return list(a.shape) == list(b.shape) and a.dtype == b.dtype


def _first(node: gs.Node) -> gs.Tensor:
    return node.inputs[0]


def _dropout(node: gs.Node) -> gs.Tensor | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    off = training is None or training.is_empty() or (is_const(training) and not value(training))
    return _first(node) if off and (len(node.outputs) < 2 or not node.outputs[1].outputs) else None


def _transpose(node: gs.Node) -> gs.Tensor | None:
    perm = attr(node, "perm")
    # Moving axes of size 1 leaves the data as it is only where the order of the others is kept.
    return _first(node) if perm is not None and list(perm) == sorted(perm) else None


def _pad(node: gs.Node) -> gs.Tensor | None:
    pads = node.inputs[1] if len(node.inputs) > 1 else None
    return _first(node) if pads is not None and is_const(pads) and not any(ints(pads)) else None


def _slice(node: gs.Node) -> gs.Tensor | None:
    """Same shape and positive step means nothing was cut."""
    if len(node.inputs) > 4 and not (
        is_const(node.inputs[4]) and all(s == 1 for s in ints(node.inputs[4]))
    ):
        return None
    if all(map(is_const, node.inputs[1:])):
        return _first(node)
    # Bounds that the batch decides cut nothing where it is the batch that they bound.
    axes = node.inputs[3] if len(node.inputs) > 3 and not node.inputs[3].is_empty() else None
    if (axes is not None and not is_const(axes)) or node.inputs[0].shape is None:
        return None
    dims = node.inputs[0].shape
    cut = ints(axes) if axes is not None else range(int(node.inputs[1].shape[0]))
    return _first(node) if all(is_free(dims[a]) for a in cut) else None


def _concat(node: gs.Node) -> gs.Tensor | None:
    return _first(node) if len(node.inputs) == 1 else None


def _all(tensor: gs.Tensor, wanted: float) -> bool:
    if (
        not is_const(tensor)
        or is_text(tensor)
        or int(np.prod(tensor.shape, dtype=np.int64)) > _SMALL
    ):
        return False
    if large(tensor) and np.dtype(tensor.dtype).kind == "f" and wanted == 1:
        return False  # a weight: not worth loading
    return bool(np.all(value(tensor) == wanted))


def _neutral(wanted: float, commutes: bool):  # type: ignore[no-untyped-def]
    def rule(node: gs.Node) -> gs.Tensor | None:
        a, b = node.inputs
        if _all(b, wanted):
            return a
        return b if commutes and _all(a, wanted) else None

    return rule


def _where(node: gs.Node) -> gs.Tensor | None:
    condition, yes, no = node.inputs
    if is_const(condition):
        picks = value(condition)
        if picks.all():
            return yes
        return no if not picks.any() else None
    test = producer(condition)
    if test is not None and test.op == "IsNaN" and test.inputs[0] is no and _never_nan(no):
        return no
    return None


def _never_nan(tensor: gs.Tensor) -> bool:
    """Tell whether it is a Softmax whose logits no mask can have made −inf throughout a row."""
    softmax = producer(tensor)
    if softmax is None or softmax.op != "Softmax":
        return False
    node = producer(softmax.inputs[0])
    while node is not None and node.op in ("Mul", "Div", "Cast", "Identity", "Add"):
        constants = [t for t in node.inputs if is_const(t)]
        if node.op == "Add" and not (constants and np.isfinite(value(constants[0])).all()):
            return False
        live = [t for t in node.inputs if not is_const(t)]
        node = producer(live[0]) if len(live) == 1 else None
    return node is not None and node.op == "MatMul"


def _drop_mask(node: gs.Node) -> int:
    """Attention (opset 23) with a mask that allows everything: drop the mask."""
    if len(node.inputs) < 4 or node.inputs[3].is_empty() or not is_const(node.inputs[3]):
        return 0
    if len(node.inputs) > 4 and any(not t.is_empty() for t in node.inputs[4:]):
        return 0
    mask = value(node.inputs[3])
    if mask.all() if mask.dtype == np.bool_ else not mask.any():
        while len(node.inputs) > 3:
            del node.inputs[-1]
        return 1
    return 0


_RULES = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _first,
    "Reshape": _first,
    "Flatten": _first,
    "Squeeze": _first,
    "Unsqueeze": _first,
    "Expand": _first,
    "Tile": _first,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "Add": _neutral(0, True),
    "Sub": _neutral(0, False),
    "Mul": _neutral(1, True),
    "Div": _neutral(1, False),
    "Where": _where,
}
