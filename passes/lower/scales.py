"""Scales of channels folded into the matrix in front of them, for a CPU.

LayerScale multiplies what an attention or an MLP gives by one number a channel: x · (W γ) + b γ is
the same, and one pass over the activation less. A compiler for GPUs fuses the product into the
kernel that is there; ONNX Runtime runs it as a call.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, producer, value


def fold_scales(graph: gs.Graph) -> int:
    """Fold each product with a stored scale a channel that is all that reads a MatMul with a stored
    matrix, or its bias, in place; returns how many."""
    outputs = {id(t) for t in graph.outputs}
    found = 0
    for node in graph.nodes:
        if node.op != "Mul" or node.domain or len(node.outputs) != 1:
            continue
        for scale, x in (node.inputs, node.inputs[::-1]):
            if is_const(scale) and _fold(node, value(scale), x, outputs):
                found += 1
                break
    if found:
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    return found


def _fold(node: gs.Node, scale: np.ndarray, x: gs.Tensor, outputs: set[int]) -> bool:
    """Tell whether `node` = scale · x is gone."""
    add = producer(x)
    if add is None or not _only(x, outputs):
        return False
    product, bias = add, -1
    if add.op == "Add" and not add.domain:
        constant = [i for i, t in enumerate(add.inputs) if is_const(t)]
        if len(constant) != 1:
            return False
        (bias,) = constant
        inner = add.inputs[1 - bias]
        product = producer(inner)
        if product is None or not _only(inner, outputs):
            return False
    if product.op != "MatMul" or product.domain or not is_const(product.inputs[1]):
        return False
    # A matrix that several read, of blocks that share weights, stays one.
    if len(product.inputs[1].outputs) != 1 or x.shape is None or scale.ndim > len(x.shape):
        return False
    weight = value(product.inputs[1])
    channels = weight.shape[-1]
    row = scale.reshape(-1)
    # A single number is left alone: it is mostly that of an attention, which is fused.
    if weight.ndim != 2 or row.size != channels or scale.shape[-1:] != (channels,) or channels < 2:
        return False
    if bias >= 0:
        if value(add.inputs[bias]).shape[-1:] not in ((channels,), (1,)):
            return False
        add.inputs[bias] = gs.Constant(f"{node.name}/bias", value(add.inputs[bias]) * row)
    product.inputs[1] = gs.Constant(f"{node.name}/weight", weight * row)
    result = node.outputs[0]
    node.outputs.clear()
    add.outputs[0] = result
    return True


def _only(tensor: gs.Tensor, outputs: set[int]) -> bool:
    """Tell whether one node alone reads a tensor."""
    return len(tensor.outputs) == 1 and id(tensor) not in outputs
