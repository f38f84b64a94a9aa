"""Evaluate what is constant: shapes by inference, the rest in ONNX Runtime without optimisation.

A dim that holds a free batch is not a constant, nor is what is computed from it (batch_values.py).
graphsurgeon's own folder ignores the start/end attributes of Shape and corrupts dynamic exports,
so it is not used.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from tcompile.core.errors import ModelError
from tcompile.core.graph import attr, is_const, is_free, is_text, opset_imports, replace_uses, value
from tcompile.core.node_order import drop_dead, toposort
from tcompile.passes.normalize.batch_values import NEVER, SIZED, DimVectors
from tcompile.passes.normalize.evaluate import Evaluator
from tcompile.passes.normalize.origins import Origins

#: A folded tensor beyond this many bytes stays a sub-graph, unless its inputs are as large.
SIZE_CAP = 64 << 20
_HINT = "if ONNX Runtime runs the file as it came, please report this"


def fold_shapes(graph: gs.Graph, vectors: DimVectors, origins: Origins) -> int:
    """Replace Shape and Size of tensors whose shape is known; returns how many.

    By constants, or where a free batch is among the dims by what computes them from the inputs.
    """
    count, live = 0, 0
    for node in list(graph.nodes):
        if node.op not in ("Shape", "Size") or node.domain not in (None, "", "ai.onnx"):
            continue
        source, out = node.inputs[0], node.outputs[0]
        if vectors.root(node) or source.shape is None:
            continue
        if any(not isinstance(d, (int, np.integer)) for d in source.shape):
            continue
        dims = [int(d) for d in source.shape]
        if node.op == "Shape":
            dims = dims[attr(node, "start", 0) : attr(node, "end")]
        size = prod(dims)
        free = any(map(is_free, dims)) if node.op == "Shape" else is_free(size)
        if free:
            made = vectors.vector(dims) if node.op == "Shape" else vectors.scalar(size)
            origins.measured(node)
            origins.same(out, made)
            replace_uses(out, made)
            if any(out is o for o in graph.outputs):
                node.op, node.attrs, node.inputs = "Identity", {}, [made]
            live += 1
        else:
            origins.measured(node)
            _store(out, np.asarray(dims if node.op == "Shape" else size, dtype=np.int64))
        count += 1
    _drop_dead(graph)
    if live:
        toposort(graph)
    return count


def fold_constants(graph: gs.Graph, origins: Origins) -> int:
    """Evaluate every sub-graph of constants. Returns the number of nodes that went."""
    known: set[str] = set()
    foldable: list[gs.Node] = []
    for node in graph.nodes:
        if _foldable(node, known):
            foldable.append(node)
            origins.follow(node)
            known.update(t.name for t in node.outputs)
        else:
            _refuse_zero(node)
    if not foldable:
        return 0
    inside = {id(n) for n in foldable}
    wanted = [
        t
        for n in foldable
        for t in n.outputs
        if t.name
        and (any(id(c) not in inside for c in t.outputs) or any(t is o for o in graph.outputs))
    ]
    outputs, copied = [o.name for o in graph.outputs], 0
    for tensor, result in zip(wanted, _evaluate(graph, foldable, wanted), strict=True):
        if tensor.name in outputs:
            # A constant graph output keeps its node; what reads it reads a stored copy.
            if tensor.outputs:
                name = f"{tensor.name}/value"
                copied += 1
                replace_uses(tensor, gs.Constant(name, np.array(result)))
            continue
        _store(tensor, result)
    before = len(graph.nodes)
    _drop_dead(graph)
    return before - len(graph.nodes) + copied


def _foldable(node: gs.Node, known: set[str]) -> bool:
    if node.op in NEVER or node.domain not in (None, "", "ai.onnx", "com.microsoft"):
        return False
    if any(isinstance(a, gs.Graph) for a in node.attrs.values()):
        return False
    inputs = [t for t in node.inputs if not t.is_empty()]
    if not all((is_const(t) and not is_text(t)) or t.name in known for t in inputs):
        return False
    for tensor in node.outputs:
        if tensor.is_empty():
            continue
        if tensor.shape is None:
            return node.op not in SIZED
        # What carries the free batch stays live: its size is known at run time only.
        if any(map(is_free, tensor.shape)):
            return False
        size = prod(map(int, tensor.shape)) * 4
        if size > SIZE_CAP and size > 4 * sum(_elements(t) for t in inputs):
            return False
    return True


def _refuse_zero(node: gs.Node) -> None:
    """Refuse integers divided by a stored 0: a runtime that is given such a file crashes."""
    if node.op not in ("Div", "Mod") or node.domain or not is_const(node.inputs[-1]):
        return
    divisor = node.inputs[-1]
    if np.dtype(divisor.dtype).kind in "iu" and not value(divisor).all():
        raise ModelError(f"{node.op} '{node.name}' divides integers by 0", hint="export it again")


def _elements(tensor: gs.Tensor) -> int:
    return prod(map(int, tensor.shape or [1]))


def _evaluate(
    graph: gs.Graph, nodes: list[gs.Node], wanted: list[gs.Tensor]
) -> list[np.ndarray[Any, Any]]:
    if not wanted:
        return []
    constants = {t.name: t for n in nodes for t in n.inputs if is_const(t)}
    proto = onnx.helper.make_graph(
        [OnnxExporter.export_node(n) for n in nodes],
        "constants",
        [],
        [onnx.helper.make_empty_tensor_value_info(t.name) for t in wanted],
        initializer=[OnnxExporter.export_tensor_proto(t) for t in constants.values()],
    )
    model = onnx.helper.make_model(
        proto, opset_imports=opset_imports(graph), ir_version=graph.ir_version or 10
    )
    return Evaluator(model, "its constants", _HINT)([t.name for t in wanted], {})


def _store(tensor: gs.Tensor, result: np.ndarray[Any, Any]) -> None:
    tensor.inputs.clear()
    tensor.to_constant(np.ascontiguousarray(result) if result.ndim else result)


def _drop_dead(graph: gs.Graph) -> None:
    """Remove nodes that nothing reads, repeatedly, without touching graph inputs."""
    drop_dead(graph)


_BRANCHES = ("then_branch", "else_branch")


def _detach(branch: gs.Graph) -> None:
    """Let nothing outside a branch that goes know of it: tensors list all their readers."""
    for node in branch.nodes:
        for inner in node.attrs.values():
            if isinstance(inner, gs.Graph):
                _detach(inner)
        node.inputs.clear()


def inline_ifs(graph: gs.Graph) -> int:
    """Replace each `If` with a constant condition by the branch taken. Returns how many."""
    count = 0
    for node in [n for n in graph.nodes if n.op == "If" and is_const(n.inputs[0])]:
        yes = bool(value(node.inputs[0]))
        taken, left = (node.attrs[n] for n in _BRANCHES[:: 1 if yes else -1])
        _detach(left)
        position = next(i for i, n in enumerate(graph.nodes) if n is node)
        outside = {id(t) for t in graph.tensors().values()}
        for inner in taken.tensors().values():
            # Branches of other nodes may use the same names, for stored tensors too.
            if id(inner) not in outside:
                inner.name = f"{node.name}/{inner.name}"
        outputs = list(node.outputs)
        node.outputs.clear()
        graph.nodes[position : position + 1] = list(taken.nodes)
        for old, new in zip(outputs, taken.outputs, strict=True):
            if any(old is o for o in graph.outputs):
                graph.outputs[[old is o for o in graph.outputs].index(True)] = new
                new.name = old.name
            replace_uses(old, new)
        count += 1
    return count
