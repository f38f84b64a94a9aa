"""Counting floating-point operations: matrix products and convolutions, 2 per multiply-add.

Token ops count as their bodies do, which are graphs with shapes for that (and for the roofline).
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import prod

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx.helper import np_dtype_to_tensor_dtype

from tcompile.analysis.structure import Block
from tcompile.analysis.transfer import einsum_terms, spelled_out
from tcompile.core.domain import DOMAIN
from tcompile.core.graph import attr, batch_dim, producer, settled, tensors_of, value
from tcompile.plugins.ops import find_op


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
    if node.op == "Einsum" and len(node.inputs) == 2 and spelled_out(node):
        terms, _ = einsum_terms(node)
        sizes = {
            c: n
            for t, x in zip(terms, node.inputs, strict=True)
            for c, n in zip(t, shape(x), strict=True)
        }
        return 2 * prod(sizes.values())
    if node.op == "Conv":
        return 2 * prod(shape(node.outputs[0])) * prod(shape(node.inputs[1])[1:])
    if node.op == "ConvTranspose":
        # Weights are [in, out / groups, …], and each value of the input meets all of its row.
        return 2 * prod(shape(node.inputs[0])) * prod(shape(node.inputs[1])[1:])
    if node.op == "Attention":
        # Q·Kᵀ and probabilities·V, in [B,h,N,d] or [B,N,h·d] form.
        q, k, v = (shape(t) for t in node.inputs[:3])
        return 2 * prod(q) * k[-2] + 2 * prod(q[:-1]) * k[-2] * v[-1]
    return 0


def _token_op(node: gs.Node) -> int:
    """Return the FLOPs of a token op: those of its body, whose shapes follow from the inputs'."""
    return _body_flops(str(node.op), inputs_of(node), numbers_of(node))


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
    tensors, batch = tensors_of(graph), batch_size(graph)
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


#: Any that all bodies can be written in; products do not depend on it.
_OPSET = 18
#: ONNX element type and dims of each input.
Inputs = tuple[tuple[int, tuple[int, ...]], ...]
Numbers = tuple[tuple[str, int], ...]


def inputs_of(call: gs.Node, batch: int = 1) -> Inputs:
    """Return element types and dims of what a token op is called with.

    Args:
        batch: that a free one is taken for.
    """
    return tuple(
        (
            int(np_dtype_to_tensor_dtype(np.dtype(t.dtype))),
            tuple(settled(d, batch) for d in t.shape),
        )
        for t in call.inputs
    )


def numbers_of(call: gs.Node) -> Numbers:
    """Return the attributes of a call of a token op, all of which are whole numbers."""
    return tuple((k, int(value(v)[0])) for k, v in sorted(call.attrs.items()))


@lru_cache(maxsize=4096)
def token_op_body(op: str, inputs: Inputs, numbers: Numbers, opset: int = _OPSET) -> gs.Graph:
    """Return the body of a token op from i0, i1, … to o0, o1, …, every shape inferred.

    Nodes are named by operator and place. The graph is shared: it must not be changed.
    """
    spec = find_op(op)
    sources = [
        onnx.helper.make_tensor_value_info(f"i{i}", dtype, dims)
        for i, (dtype, dims) in enumerate(inputs)
    ]
    results = [onnx.helper.make_empty_tensor_value_info(f"o{i}") for i in range(len(spec.outputs))]
    call = onnx.helper.make_node(
        op, [v.name for v in sources], [v.name for v in results], domain=DOMAIN
    )
    for key, number in numbers:
        tensor = onnx.numpy_helper.from_array(np.asarray([number], np.int64), key)
        call.attribute.append(onnx.helper.make_attribute(key, tensor))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], op, sources, results),
        functions=[spec.function(opset)],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, 1)],
    )
    inlined = onnx.inliner.inline_local_functions(model)
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(inlined, data_prop=True))
    for i, node in enumerate(graph.nodes):
        node.name = f"{node.op}_{i}"
    return graph
