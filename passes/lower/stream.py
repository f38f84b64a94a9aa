"""ToMe's step as few operators on the whole stream, for a CPU (`plugins/ops/stream.py`): where it
leaves some even tokens unmerged, and where the graph is in fp32.

As reduced, the prefix is cut off and joined back, even and odd tokens are copied apart, sizes lose
and get their prefix, and keys are turned to be averaged over heads. For TensorRT these are views
and one generated kernel. On a CPU each is a call that copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import attr, ints, is_const, producer, replace_uses, value

#: The first in which a scatter adds.
OPSET = 16


def widen_merges(graph: gs.Graph) -> int:
    """Rewrite `TcMatchTokens` and `TcMergeTokens` in place, the prefix in, for as long as the graph
    goes on; returns how many calls are new.

    Args:
        graph: topologically sorted, with shapes.
    """
    if graph.opset < OPSET:
        return 0
    wide: dict[str, gs.Tensor] = {}
    found = 0
    for node in list(graph.nodes):
        if node.domain != DOMAIN:
            continue
        if node.op == "TcMatchTokens":
            found += _match(graph, node)
        elif node.op == "TcMergeTokens":
            found += _merge(graph, node, wide)
    if found:
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
        graph.toposort(recurse_subgraphs=False, recurse_functions=False, mode="nodes")
    return found


@dataclass(frozen=True)
class _Behind:
    """Rows behind a prefix of `prefix` rows."""

    stream: gs.Tensor
    prefix: int


def _behind(tensor: gs.Tensor) -> _Behind:
    """Return the stream that a tensor is the end of; itself behind no prefix, if of none."""
    node = producer(tensor)
    part = _part(node) if node is not None else None
    if node is not None and part is not None:
        stream = node.inputs[0]
        if stream.shape and part == (part[0], stream.shape[1]) and part[0] > 0:
            return _Behind(stream, part[0])
    return _Behind(tensor, 0)


def _part(node: gs.Node) -> tuple[int, int] | None:
    """(start, end) of a Slice of axis 1 without steps, no further than its rows; None for any
    other node."""
    if node.op != "Slice" or node.domain or not all(is_const(t) for t in node.inputs[1:]):
        return None
    starts, ends, axes, *steps = (ints(t) for t in node.inputs[1:])
    rows = (node.inputs[0].shape or [None, None])[1]
    if axes != [1] or (steps and steps[0] != [1]) or not isinstance(rows, int):
        return None
    return starts[0], min(ends[0], rows)


def _match(graph: gs.Graph, call: gs.Node) -> int:
    rows = _behind(call.inputs[0])
    metric = _mean_over_heads(graph, rows.stream, call.name)
    if metric.shape is None or not isinstance(metric.shape[1], int):
        return 0
    call.op = "TcMatchStream"
    call.inputs = [metric]
    call.attrs |= _numbers(call.name, prefix=rows.prefix, first_odd=rows.prefix + 1)
    return 1


def _mean_over_heads(graph: gs.Graph, metric: gs.Tensor, name: str) -> gs.Tensor:
    """A mean over heads [B,N,D] of keys that were turned or scaled since, taken before that: what
    matters of it is its direction."""
    turned = producer(metric)
    mean = producer(turned.inputs[0]) if turned is not None and turned.op == "Transpose" else None
    if turned is None:
        return metric
    order = list(turned.attrs.get("perm", [])) if mean is not None else [0, 1, 2]
    mean = mean or turned
    if mean.op != "ReduceMean" or attr(mean, "keepdims", 1) or len(mean.inputs[0].shape or ()) != 4:
        return metric
    axes = ints(mean.inputs[1]) if len(mean.inputs) > 1 else attr(mean, "axes")
    if len(axes or []) != 1:
        return metric
    # Where each axis of the keys, as they are averaged, is in `keys`.
    keys, place = mean.inputs[0], [0, 1, 2, 3]
    node = producer(keys)
    while node is not None and not node.domain:
        if node.op == "Transpose" and len(node.attrs.get("perm", [])) == 4:
            place = [node.attrs["perm"][i] for i in place]
        elif not (node.op == "Mul" and _is_scale(node.inputs[1])):
            break
        keys, node = node.inputs[0], producer(node.inputs[0])
    over = axes[0] % 4
    left = [place[i] for i in range(4) if i != over]
    wanted = [left[i] for i in order]
    if keys is mean.inputs[0] or keys.shape is None or wanted != sorted(wanted):
        return metric
    shape = [keys.shape[i] for i in wanted]
    made = gs.Variable(f"{name}/mean", metric.dtype, shape)
    inputs: list[gs.Tensor] = [keys]
    attrs: dict[str, Any] = {"keepdims": 0}
    if len(mean.inputs) > 1:
        inputs.append(gs.Constant(f"{name}/over", np.array([place[over]], np.int64)))
    else:
        attrs["axes"] = [place[over]]
    graph.nodes.append(gs.Node("ReduceMean", f"{name}/mean", attrs, inputs, [made]))
    return made


def _is_scale(tensor: gs.Tensor) -> bool:
    """Tell whether it is one stored number above 0."""
    return is_const(tensor) and value(tensor).size == 1 and float(value(tensor).reshape(-1)[0]) > 0


def _merge(graph: gs.Graph, call: gs.Node, wide: dict[str, gs.Tensor]) -> int:
    """
    Args:
        wide: sizes of patches, by name → those of the whole stream; what is new is added.
    """
    x, size, keep, source, target, _ = call.inputs
    merged, sizes = call.outputs
    rows, joined = _behind(x), None
    if rows.prefix:
        joined = _joined(rows, merged, graph.outputs)
        if joined is None:
            rows = _Behind(x, 0)
    count, prefix = rows.stream.shape[1], rows.prefix
    if not isinstance(count, int):
        return 0
    rest, r = keep.shape[1], source.shape[1]
    odd, left = count - prefix - rest - r, count - r
    before = wide.get(size.name) if prefix else size
    if before is None:
        before = _with_ones(graph, size, prefix, call.name)
    result = merged if joined is None else joined.outputs[0]
    (joined or call).outputs.clear()
    call.outputs.clear()
    full = gs.Variable(f"{call.name}/sizes", np.float32, [*before.shape[:1], left])
    front, odds = np.arange(prefix), prefix + 1 + 2 * np.arange(odd)
    fixed = {"odds": odds, "slots": np.arange(left)[:, None], "front": front}
    constants = [gs.Constant(f"{call.name}/{k}", v) for k, v in fixed.items() if v.size]
    call.op = "TcMergeStream" if prefix else "TcMergeWhole"
    call.inputs = [rows.stream, before, keep, source, target, *constants]
    call.attrs |= _numbers(call.name, prefix=prefix, own=prefix + rest)
    call.outputs = [result, full if prefix else sizes]
    if prefix:
        _share(graph, sizes, full, prefix, call.name)
        wide[sizes.name] = full
    return 1


def _joined(rows: _Behind, merged: gs.Tensor, outputs: Sequence[gs.Tensor]) -> gs.Node | None:
    """The node that joins merged patches and the prefix that they were cut from, if it is all that
    reads them."""
    if any(merged is t for t in outputs):
        return None
    if len(merged.outputs) != 1 or merged.outputs[0].op != "Concat":
        return None
    node: gs.Node = merged.outputs[0]
    if node.attrs.get("axis") != 1 or len(node.inputs) != 2 or node.inputs[1] is not merged:
        return None
    head = producer(node.inputs[0])
    if head is None or head.op != "Slice" or head.inputs[0] is not rows.stream:
        return None
    return node if _part(head) == (0, rows.prefix) else None


def _with_ones(graph: gs.Graph, size: gs.Tensor, prefix: int, name: str) -> gs.Tensor:
    """[B, prefix + T]: sizes with those of the prefix, which are 1."""
    for node in size.outputs:
        if _puts_ones(node, size, prefix):
            found: gs.Tensor = node.outputs[0]
            return found
    batch, count = size.shape
    bounds = [gs.Constant(f"{name}/{n}", np.array([n], np.int64)) for n in (0, 1)]
    first, zero, ones = (
        gs.Variable(f"{name}/{what}", np.float32, [batch, dims])
        for what, dims in (("first", 1), ("nothing", 1), ("ones", prefix))
    )
    full = gs.Variable(f"{name}/sizes_before", np.float32, [batch, prefix + count])
    one = gs.Constant(f"{name}/one", np.ones((1, prefix), np.float32))
    graph.nodes += [
        gs.Node("Slice", f"{name}/first", {}, [size, *bounds, bounds[1]], [first]),
        gs.Node("Sub", f"{name}/nothing", {}, [first, first], [zero]),
        gs.Node("Add", f"{name}/ones", {}, [zero, one], [ones]),
        gs.Node("Concat", f"{name}/sizes_before", {"axis": 1}, [ones, size], [full]),
    ]
    return full


def _puts_ones(node: gs.Node, size: gs.Tensor, prefix: int) -> bool:
    """Tell whether a node joins `prefix` ones, a batch of them, and sizes."""
    if node.op != "Concat" or node.attrs.get("axis") != 1 or len(node.inputs) != 2:
        return False
    add = producer(node.inputs[0])
    if node.inputs[1] is not size or add is None or add.op != "Add":
        return False
    zero, ones = producer(add.inputs[0]), add.inputs[1]
    if zero is None or zero.op != "Sub" or zero.inputs[0] is not zero.inputs[1]:
        return False
    return is_const(ones) and value(ones).size == prefix and bool((value(ones) == 1).all())


def _share(graph: gs.Graph, sizes: gs.Tensor, full: gs.Tensor, prefix: int, name: str) -> None:
    """Let what puts ones before sizes read the whole stream's; whatever else reads the patches'
    gets them from there."""
    for node in list(sizes.outputs):
        asked = any(node.outputs[0] is t for t in graph.outputs) if node.outputs else True
        if not asked and _puts_ones(node, sizes, prefix):
            replace_uses(node.outputs[0], full)
            node.outputs.clear()
    bounds = {"from": prefix, "to": full.shape[1], "along": 1}
    given = [gs.Constant(f"{name}/{k}", np.array([v], np.int64)) for k, v in bounds.items()]
    graph.nodes.append(gs.Node("Slice", f"{name}/patches", {}, [full, *given], [sizes]))


def _numbers(name: str, **numbers: int) -> dict[str, Any]:
    """Attributes of a call."""
    return {k: gs.Constant(f"{name}/{k}", np.array([v], np.int64)) for k, v in numbers.items()}
