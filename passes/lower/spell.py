"""Operators spelled out in plainer ones, for runtimes that do not know or do not build them.

- `Attention` (ONNX opset 23) is not known to TensorRT before 10.14 (JetPack 6 and 7.1), or there is
  no kernel for what it is asked: in TensorRT-RTX 1.7 fp32, one query row, heads wider than 256. In
  fp16 the plain spelling is fused into the same kernels.
- `RMSNormalization` (opset 23) is not known to TensorRT before 10.14.
- Products of fp32 matrices: TensorRT-RTX 1.7 refuses to build any for compute capability 7.5 ("FP32
  GEMM is not supported"). In a graph of fp16 those left are of scores and of merging, and must not
  be rounded. As Mul and ReduceSum they are exact, and Myelin makes one kernel of the two, which
  keeps nothing but the result in memory: no tensor cores, no more traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.errors import ModelError
from tcompile.core.rounding import FLOAT32

#: Name of each node that was replaced → the names of those in its place.
Replaced = Mapping[str, frozenset[str]]

#: Attributes of `Attention` that say nothing more than their default where it is spelled out.
_NEUTRAL = {
    "is_causal": 0,
    "qk_matmul_output_mode": 0,
    "softcap": 0.0,
    "left_window_size": -1,
    "right_window_size": -1,
}


def _replace(
    nodes: list[gs.Node],
    wanted: Callable[[gs.Node], bool],
    spell: Callable[[gs.Node], list[gs.Node]],
) -> Replaced:
    """Put what `spell` gives in the place of each node that is wanted."""
    replaced: dict[str, frozenset[str]] = {}
    kept: list[gs.Node] = []
    for node in nodes:
        if wanted(node):
            made = spell(node)
            replaced[node.name] = frozenset(each.name for each in made)
            kept += made
        else:
            kept.append(node)
    nodes[:] = kept
    return replaced


class _Spelling:
    """The nodes in the place of one, called after it: `NAME/Softmax` and so on.

    Attributes:
        made: so far, in order.
        inputs, outputs: of the node, which is unhooked from them.
    """

    def __init__(self, node: gs.Node, name: str = "") -> None:
        self.name, self.made = name or node.name, list[gs.Node]()
        self.inputs, self.outputs = list(node.inputs), list(node.outputs)
        self.dtype = self.inputs[0].dtype
        node.inputs.clear()
        node.outputs.clear()

    def emit(
        self,
        op: str,
        name: str,
        inputs: Sequence[gs.Tensor],
        output: gs.Variable | None = None,
        **attrs: Any,
    ) -> gs.Variable:
        """Add a node; its result."""
        place = f"{self.name}/{name}"
        if output is None:
            output = gs.Variable(f"{place}_out", self.dtype)
        self.made.append(gs.Node(op, place, attrs, inputs=list(inputs), outputs=[output]))
        return output

    def constant(self, name: str, value: Any, dtype: Any = None) -> gs.Constant:
        """A stored value, by default of the type of the first input."""
        return gs.Constant(f"{self.name}/{name}", np.array(value, dtype or self.dtype))


# ---- Attention -----------------------------------------------------------------------------------


def decompose_attention(
    graph: gs.Graph, wanted: Callable[[gs.Node], bool] = lambda node: True
) -> Replaced:
    """Spell the `Attention` nodes for which `wanted` holds as MatMul, scale, mask, Softmax, MatMul,
    in place.

    Raises:
        ModelError: a node does more than mask, scale and soften (causal, soft cap, cache, grouped
            heads, several outputs), or its head size is not known.
    """
    return _replace(
        graph.nodes,
        lambda node: node.op == "Attention" and not node.domain and wanted(node),
        _spell_attention,
    )


def head_size(node: gs.Node) -> int | None:
    """Width of a head of an `Attention` node, or None where shapes do not tell."""
    shape = node.inputs[0].shape
    if not shape or not isinstance(shape[-1], int):
        return None
    if len(shape) == 4:
        return int(shape[-1])
    heads = node.attrs.get("q_num_heads")
    return int(shape[-1]) // int(heads) if heads else None


def query_rows(node: gs.Node) -> int | None:
    """Query rows of an `Attention` node, or None where shapes do not tell."""
    shape = node.inputs[0].shape
    return int(shape[-2]) if shape and isinstance(shape[-2], int) else None


def _spell_attention(node: gs.Node) -> list[gs.Node]:
    """q [B,H,N,d] · k [B,H,M,d]ᵀ → probabilities [B,H,N,M] · v [B,H,M,e]."""
    size = _checked_size(node)
    spelling = _Spelling(node)
    emit, constant = spelling.emit, spelling.constant
    query, key, value, *rest = spelling.inputs
    mask = rest[0] if rest and not rest[0].is_empty() else None
    output = spelling.outputs[0]
    split = len(query.shape) == 3

    def reshape(
        name: str, tensor: gs.Tensor, shape: Sequence[int], output: gs.Variable | None = None
    ) -> gs.Variable:
        return emit("Reshape", name, [tensor, constant(f"{name}_shape", shape, np.int64)], output)

    def heads(tensor: gs.Tensor, name: str, order: Sequence[int]) -> gs.Variable:
        apart = reshape(f"{name}Heads", tensor, (0, 0, int(node.attrs["q_num_heads"]), -1))
        return emit("Transpose", name, [apart], perm=list(order))

    if split:
        query = heads(query, "Query", (0, 2, 1, 3))
        key = heads(key, "Key", (0, 2, 3, 1))
        value = heads(value, "Value", (0, 2, 1, 3))
    else:
        key = emit("Transpose", "Key", [key], perm=[0, 1, 3, 2])
    scale = float(node.attrs.get("scale", 1.0 / math.sqrt(size)))
    # On the queries: N·d multiplications in place of N·M, and scores that fit fp16.
    query = emit("Mul", "Scale", [query, constant("scale", scale)])
    scores = emit("MatMul", "Scores", [query, key])
    if mask is not None and np.dtype(mask.dtype) == np.bool_:
        low = constant("masked", float(np.finfo(spelling.dtype).min))
        scores = emit("Where", "Mask", [mask, scores, low])
    elif mask is not None:
        scores = emit("Add", "Mask", [scores, mask])
    weights = emit("Softmax", "Softmax", [scores], axis=-1)
    if split:
        mixed = emit("MatMul", "Mix", [weights, value])
        mixed = emit("Transpose", "Join", [mixed], perm=[0, 2, 1, 3])
        reshape("Output", mixed, (0, 0, -1), output)
    else:
        emit("MatMul", "Mix", [weights, value], output)
    return spelling.made


def _checked_size(node: gs.Node) -> int:
    """The width of a head of an `Attention`; raises ModelError where it cannot be spelled out."""

    def refusal(why: str) -> ModelError:
        return ModelError(
            f"attention cannot be spelled out for this target: {why}",
            where=f"node '{node.name}' (Attention)",
            hint="export with an opset of 22 or older",
        )

    size = head_size(node)
    if size is None:
        raise refusal("the size of its heads is not known")
    for name, neutral in _NEUTRAL.items():
        if node.attrs.get(name, neutral) != neutral:
            raise refusal(f"{name}={node.attrs[name]}")
    if any(not tensor.is_empty() for tensor in node.inputs[4:]):
        raise refusal("it reads a cache")
    if any(not tensor.is_empty() for tensor in node.outputs[1:]):
        raise refusal("it has more than one output")
    q, kv = (
        t.shape[1] if t.shape and len(t.shape) == 4 else node.attrs.get(name)
        for t, name in zip(node.inputs, ("q_num_heads", "kv_num_heads"), strict=False)
    )
    if q != kv:
        raise refusal(f"{q} heads of queries share {kv} heads of keys")
    return size


# ---- RMSNormalization ----------------------------------------------------------------------------


def decompose_rms_norm(graph: gs.Graph) -> Replaced:
    """Spell every `RMSNormalization` over the last axis in plainer operators, in place.

    y = x / sqrt(mean(x²) + ε) · scale, where the mean is over the last axis.
    """
    return _replace(
        graph.nodes,
        lambda n: n.op == "RMSNormalization" and not n.domain and _last_axis(n),
        _spell_rms_norm,
    )


def _last_axis(node: gs.Node) -> bool:
    axis, shape = node.attrs.get("axis", -1), node.inputs[0].shape
    return axis == -1 or (bool(shape) and axis == len(shape) - 1)


def _spell_rms_norm(node: gs.Node) -> list[gs.Node]:
    spelling = _Spelling(node)
    emit, constant, (x, scale) = spelling.emit, spelling.constant, spelling.inputs
    square = emit("Mul", "Square", [x, x])
    # Axes as an input: the operator that is replaced is newer than opset 18.
    mean = emit("ReduceMean", "Mean", [square, constant("axes", [-1], np.int64)], keepdims=1)
    epsilon = constant("epsilon", node.attrs.get("epsilon", 1e-5))
    root = emit("Sqrt", "Root", [emit("Add", "Guard", [mean, epsilon])])
    emit("Mul", "Output", [emit("Div", "Normal", [x, root]), scale], spelling.outputs[0])
    return spelling.made


# ---- products of fp32 ----------------------------------------------------------------------------


def spell_products(graph: gs.Graph) -> Replaced:
    """Spell every `MatMul` of fp32 as a sum, in place, also in the bodies of token ops.

    y[…, m, n] = Σ_k a[…, m, k] · b[…, k, n], of tensors with two axes or more. The result names the
    nodes of the graph, not those of bodies.
    """
    for body in graph.functions:
        if body.domain == DOMAIN:
            # Their products are all of [B, ., .], and of fp32: what they sum is.
            _replace(
                body.nodes,
                lambda n: n.op == "MatMul",
                lambda n, opset=body.opset: _spell_product(n, 3, opset),  # type: ignore[misc]
            )
    return _replace(
        graph.nodes, _is_product, lambda n: _spell_product(n, len(n.inputs[1].shape), graph.opset)
    )


def _is_product(node: gs.Node) -> bool:
    if node.op != "MatMul" or node.domain or node.inputs[0].dtype != FLOAT32:
        return False
    return all(t.shape is not None and len(t.shape) >= 2 for t in node.inputs)


def _spell_product(node: gs.Node, rank: int, opset: int) -> list[gs.Node]:
    """The nodes in place of one; `rank` is the second operand's."""
    spelling = _Spelling(node, node.name or f"{node.outputs[0].name}/MatMul")
    (a, b), made = spelling.inputs, spelling.made

    def emit(
        op: str, inputs: Sequence[gs.Tensor], output: gs.Variable | None = None, **attrs: Any
    ) -> gs.Variable:
        return spelling.emit(op, f"{op}_{len(made)}", inputs, output, **attrs)

    def over(
        op: str, x: gs.Tensor, axis: int, output: gs.Variable | None = None, **attrs: Any
    ) -> gs.Variable:
        if opset < 13:
            return emit(op, [x], output, axes=[axis], **attrs)
        stored = spelling.constant(f"{op}_{len(made)}_axes", [axis], np.int64)
        holder = gs.Variable(stored.name, np.int64)
        made.append(gs.Node("Constant", f"{stored.name}/Constant", {"value": stored}, [], [holder]))
        return emit(op, [x, holder], output, **attrs)

    order = [*range(rank - 2), rank - 1, rank - 2]
    rows = over("Unsqueeze", a, -2)
    columns = over("Unsqueeze", emit("Transpose", [b], perm=order), -3)
    over("ReduceSum", emit("Mul", [rows, columns]), -1, spelling.outputs[0], keepdims=0)
    return made
