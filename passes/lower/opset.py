"""Declare an older opset where the graph uses nothing newer, or a newer one, where all means the
same.

The parser of TensorRT 10.0 (10.3 is in JetPack 6) takes opset 9 to 20, says onnx-tensorrt's
docs/operators.md. Most of what later opsets changed is which element types an operator takes, such
as bfloat16 and floats of 8 and 4 bits, so the same nodes mean the same under another number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

logger = logging.getLogger(__name__)

#: Operators whose meaning changed in a newer opset, not only their types.
_CHANGED_MEANING = {"GroupNormalization"}
#: The ONNX file format that goes with opset 21 and older.
_IR_VERSION = 10


def lower_opset(graph: gs.Graph, opset: int) -> tuple[str, ...]:
    """Declare `opset` on the graph and its functions, in place, if every node allows it.

    Returns:
        The operators that do not; the graph is unchanged unless it is empty.
    """
    bodies = [body for body in (graph, *graph.functions) if body.opset > opset]
    stubborn = _declare(bodies, opset)
    if stubborn:
        logger.warning(
            "the model stays at opset %d: %s cannot be declared at %d",
            graph.opset,
            ", ".join(stubborn),
            opset,
        )
        return stubborn
    graph.ir_version = min(graph.ir_version or _IR_VERSION, _IR_VERSION)
    return ()


def raise_opset(graph: gs.Graph, opset: int) -> tuple[str, ...]:
    """Declare at least `opset` on the graph and its functions, in place, if every node allows it.

    Axes of reductions, which were attributes up to opset 17, become inputs, and a Split into equal
    parts says how many.

    Returns:
        The operators that do not; the graph computes the same unless it is empty.
    """
    bodies = [body for body in (graph, *graph.functions) if body.opset < opset]
    for body in bodies:
        for node in body.nodes:
            if _takes_axes(node, opset) and "axes" in node.attrs:
                axes = np.asarray(node.attrs.pop("axes"), np.int64)
                node.inputs.append(gs.Constant(f"{node.outputs[0].name}/axes", axes))
            equal = not any(not tensor.is_empty() for tensor in node.inputs[1:])
            if node.op == "Split" and not node.domain and equal:
                node.attrs.setdefault("num_outputs", len(node.outputs))
    return _declare(bodies, opset)


def _takes_axes(node: gs.Node, opset: int) -> bool:
    if node.domain or not node.op.startswith("Reduce"):
        return False
    return "axes" not in onnx.defs.get_schema(node.op, opset, "").attributes


def _declare(bodies: Sequence[gs.Graph | gs.Function], opset: int) -> tuple[str, ...]:
    """Declare an opset on all, if every node means the same in it; else returns which do not."""
    stubborn = sorted({op for body in bodies for op in _changed(body.nodes, body.opset, opset)})
    if stubborn:
        return tuple(stubborn)
    for body in bodies:
        others = [each for each in body.import_domains or [] if each.domain]
        body.opset = opset
        body.import_domains = [onnx.helper.make_opsetid("", opset), *others]
    return ()


def _changed(nodes: Iterable[gs.Node], declared: int, opset: int) -> set[str]:
    """The operators among `nodes` that `opset` does not have in the same meaning."""
    return {
        node.op for node in nodes if not node.domain and not _means_the_same(node, declared, opset)
    }


def _means_the_same(node: gs.Node, declared: int, opset: int) -> bool:
    try:
        now = onnx.defs.get_schema(node.op, declared, "")
        then = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError:
        return False
    if now.since_version == then.since_version:
        return True
    return (
        node.op not in _CHANGED_MEANING
        and set(node.attrs) <= set(then.attributes)
        and len(node.inputs) <= then.max_input
        and len(node.outputs) <= then.max_output
    )
