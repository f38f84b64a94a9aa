"""Token ops spelled in standard operators: plain ONNX, which any reader of the format takes.

ONNX Runtime inlines model-local functions by itself. OpenVINO, onnxruntime's quantizer and many
converters do not take a file that has any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx.helper import np_dtype_to_tensor_dtype

from tcompile.analysis.flops import numbers_of, token_op_body
from tcompile.core.graph import int_to_dim, shape
from tcompile.passes.lower.token_ops import is_call


def inline_calls(graph: gs.Graph) -> int:
    """Put the bodies of token ops in place of their calls; returns how many calls there were.

    What a call gives keeps its name. Nodes and tensors inside are named after the call, which is
    named after the op: `tcompile/attn_3/topk/TcTopKTokens/TopK_1`. The functions stay in the graph.

    Args:
        graph: every tensor that a call takes has a type and a shape.
    """
    taken = set(graph.tensors()) | {node.name for node in graph.nodes}
    nodes: list[gs.Node] = []
    calls = 0
    for node in graph.nodes:
        if is_call(node):
            nodes += _body(node, graph.opset, taken)
            calls += 1
        else:
            nodes.append(node)
    graph.nodes[:] = nodes
    return calls


def _body(call: gs.Node, opset: int, taken: set[str]) -> list[gs.Node]:
    """The nodes of a call, which is taken out of its graph.

    Args:
        taken: names in the graph; those of the nodes and tensors are added.
    """

    def name(inner: str) -> str:
        made = f"{call.name}/{inner.removesuffix('__1')}"  # as onnx's inliner calls them
        while made in taken:
            made += "_"
        taken.add(made)
        return made

    # A free batch has a size of its own for as long as shapes are inferred.
    kinds = tuple((int(np_dtype_to_tensor_dtype(np.dtype(t.dtype))), shape(t)) for t in call.inputs)
    body = token_op_body(str(call.op), kinds, numbers_of(call), opset)
    known: dict[str, gs.Tensor] = {f"i{i}": tensor for i, tensor in enumerate(call.inputs)}
    known |= {f"o{i}": tensor for i, tensor in enumerate(call.outputs) if not tensor.is_empty()}
    call.inputs.clear()
    call.outputs.clear()
    nodes: list[gs.Node] = []
    for node in body.nodes:
        stored = _stored(node)
        if stored is not None:
            made = node.outputs[0].name
            known[made] = gs.Constant(name(made), stored)
            continue
        for tensor in node.outputs:
            if tensor.name not in known:
                known[tensor.name] = gs.Variable(name(tensor.name), tensor.dtype, _dims(tensor))
        inputs, outputs = ([known[t.name] for t in ts] for ts in (node.inputs, node.outputs))
        nodes.append(gs.Node(node.op, name(node.name), dict(node.attrs), inputs, outputs))
    return nodes


def _dims(tensor: gs.Tensor) -> list[int | str] | None:
    """The dims that inference found, a free batch by its name; None where it missed one."""
    if tensor.shape is None or not all(isinstance(dim, int) for dim in tensor.shape):
        return None
    return [int_to_dim(dim) for dim in tensor.shape]


def _stored(node: gs.Node) -> npt.NDArray[Any] | None:
    """The value of a `Constant` node; None for any other."""
    if node.op != "Constant":
        return None
    if "value_float" in node.attrs:
        return np.asarray(node.attrs["value_float"], np.float32)
    return np.array(node.attrs["value"].values)
