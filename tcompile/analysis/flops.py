"""Counting floating-point operations: matrix products and convolutions, 2 per multiply-add."""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx.helper import np_dtype_to_tensor_dtype

from tcompile.analysis.structure import Block
from tcompile.analysis.token_bodies import Inputs, Numbers, numbers_of, token_op_body
from tcompile.core.domain import DOMAIN
from tcompile.core.graph import attr, batch_dim, producer, settled


def node_flops(node: gs.Node) -> int:
    """FLOPs of one node for the whole batch, a free one taken for 1; ops that are not products
    count as none."""
    if node.domain == DOMAIN:
        return _token_op(node)
    if node.op == "MatMul":
        return 2 * prod(shape(node.outputs[0])) * shape(node.inputs[0])[-1]
    if node.op == "Gemm":
        inner = shape(node.inputs[0])[0 if attr(node, "transA", 0) else 1]
        return 2 * prod(shape(node.outputs[0])) * inner
    if node.op == "Conv":
        return 2 * prod(shape(node.outputs[0])) * prod(shape(node.inputs[1])[1:])
    if node.op == "Attention":
        # Q·Kᵀ and probabilities·V, in [B,h,N,d] or [B,N,h·d] form.
        q, k, v = (shape(t) for t in node.inputs[:3])
        return 2 * prod(q) * k[-2] + 2 * prod(q[:-1]) * k[-2] * v[-1]
    return 0


def _token_op(node: gs.Node) -> int:
    """Return the FLOPs of a token op: those of its body, whose shapes follow from the inputs'."""
    inputs = tuple(
        (int(np_dtype_to_tensor_dtype(np.dtype(t.dtype))), tuple(shape(t))) for t in node.inputs
    )
    return _body_flops(str(node.op), inputs, numbers_of(node))


@cache
def _body_flops(op: str, inputs: Inputs, numbers: Numbers) -> int:
    return sum(node_flops(n) for n in token_op_body(op, inputs, numbers).nodes)


def graph_flops(graph: gs.Graph) -> int:
    """FLOPs of a graph for one image."""
    return sum(node_flops(n) for n in graph.nodes) // batch_size(graph)


def batch_size(graph: gs.Graph) -> int:
    """The literal batch; 1 where it is free, as FLOPs are counted."""
    return settled(batch_dim(graph), 1)


def shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """Dims for free batches of 1."""
    return tuple(settled(d, 1) for d in tensor.shape)


def block_flops(graph: gs.Graph, blocks: tuple[Block, ...]) -> list[int]:
    """FLOPs of each block for one image: what lies between its stream in and its stream out."""
    tensors, batch = graph.tensors(), batch_size(graph)
    found: list[int] = []
    for block in blocks:
        seen: set[int] = set()
        pending, total = [tensors[block.stream_out]], 0
        while pending:
            tensor = pending.pop()
            node = producer(tensor)
            if tensor.name == block.stream_in or node is None or id(node) in seen:
                continue
            seen.add(id(node))
            total += node_flops(node)
            pending.extend(node.inputs)
        found.append(total // batch)
    return found
