"""Counting floating-point operations: matrix products and convolutions, 2 per multiply-add."""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from tcompile.analysis.structure import Block
from tcompile.ir import attr, batch_dim, dim_to_int, producer, shape
from tcompile.plugins.spec import DOMAIN


def node_flops(node: gs.Node) -> int:
    """FLOPs of one node for the whole batch; ops that are not products count as none."""
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
    sizes = [shape(t) for t in node.inputs]
    batch, tokens, width = (*sizes[0], 1)[:3]
    if node.op in ("TcMatchTokens", "TcMatchAllTokens"):
        return 2 * batch * (tokens - tokens // 2) * (tokens // 2) * width
    if node.op == "TcMergeTokens":
        return 2 * batch * sizes[3][1] * (tokens // 2) * width
    if node.op == "TcMergeAllTokens":
        return 2 * batch * (tokens // 2) ** 2 * width
    if node.op == "TcFuseTokens":
        return 2 * batch * tokens * width
    if node.op == "TcNearestTokens":
        return 2 * batch * tokens * sizes[1][1] * width
    return 0


def graph_flops(graph: gs.Graph) -> int:
    """FLOPs of a graph for one image."""
    return sum(node_flops(n) for n in graph.nodes) // batch_size(graph)


def batch_size(graph: gs.Graph) -> int:
    """The literal batch, or the sentinel where it is free."""
    return dim_to_int(batch_dim(graph))


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
