"""Spell the `Attention` operator (ONNX opset 23) as MatMul, scale, mask, Softmax, MatMul.

Needed where a runtime does not know the operator (TensorRT before 10.14, so JetPack 6 and 7.1), or
has no kernel for what it is asked and refuses to build: in TensorRT-RTX 1.7 fp32, one query row,
heads wider than 256. In fp16 the plain spelling is fused into the same kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import ModelError

#: Attributes that say nothing more than their default in the cases we spell out.
_NEUTRAL = {
    "is_causal": 0,
    "qk_matmul_output_mode": 0,
    "softcap": 0.0,
    "left_window_size": -1,
    "right_window_size": -1,
}


def decompose_attention(
    graph: gs.Graph, wanted: Callable[[gs.Node], bool] = lambda node: True
) -> Mapping[str, frozenset[str]]:
    """Replace the `Attention` nodes for which `wanted` holds, in place.

    The new nodes are called after the old one: `NAME/Softmax` and so on.

    Returns:
        For each node replaced, the names of those in its place.

    Raises:
        ModelError: a node does more than mask, scale and soften (causal, soft cap, cache, grouped
            heads, several outputs), or its head size is not known.
    """
    replaced: dict[str, frozenset[str]] = {}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        if node.op == "Attention" and not node.domain and wanted(node):
            spelled = _Spelling(node).nodes()
            replaced[node.name] = frozenset(each.name for each in spelled)
            nodes += spelled
        else:
            nodes.append(node)
    graph.nodes[:] = nodes
    return MappingProxyType(replaced)


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


class _Spelling:
    """The nodes that stand for one `Attention` node; making them unhooks it."""

    def __init__(self, node: gs.Node) -> None:
        self.node = node
        self.made: list[gs.Node] = []
        self.dtype = node.inputs[0].dtype
        size = head_size(node)
        if size is None:
            raise self._refusal("the size of its heads is not known")
        self.size = size
        self._check()

    def nodes(self) -> list[gs.Node]:
        """Spell it out. q [B,H,N,d] · k [B,H,M,d]ᵀ → probabilities [B,H,N,M] · v [B,H,M,e]."""
        node = self.node
        query, key, value, *rest = node.inputs
        mask = rest[0] if rest and not rest[0].is_empty() else None
        output = node.outputs[0]
        split = len(query.shape) == 3
        node.inputs.clear()
        node.outputs.clear()
        if split:
            q_heads = int(node.attrs["q_num_heads"])
            query = self._heads(query, "Query", q_heads, (0, 2, 1, 3))
            key = self._heads(key, "Key", q_heads, (0, 2, 3, 1))
            value = self._heads(value, "Value", q_heads, (0, 2, 1, 3))
        else:
            key = self._emit("Transpose", "Key", [key], perm=[0, 1, 3, 2])
        scale = float(node.attrs.get("scale", 1.0 / math.sqrt(self.size)))
        # On the queries: N·d multiplications in place of N·M, and scores that fit fp16.
        query = self._emit("Mul", "Scale", [query, self._constant("scale", scale)])
        scores = self._emit("MatMul", "Scores", [query, key])
        if mask is not None:
            scores = self._masked(scores, mask)
        weights = self._emit("Softmax", "Softmax", [scores], axis=-1)
        if split:
            mixed = self._emit("MatMul", "Mix", [weights, value])
            mixed = self._emit("Transpose", "Join", [mixed], perm=[0, 2, 1, 3])
            self._reshape("Output", mixed, (0, 0, -1), output)
        else:
            self._emit("MatMul", "Mix", [weights, value], output)
        return self.made

    def _check(self) -> None:
        node = self.node
        for name, neutral in _NEUTRAL.items():
            if node.attrs.get(name, neutral) != neutral:
                raise self._refusal(f"{name}={node.attrs[name]}")
        if any(not tensor.is_empty() for tensor in node.inputs[4:]):
            raise self._refusal("it reads a cache")
        if any(not tensor.is_empty() for tensor in node.outputs[1:]):
            raise self._refusal("it has more than one output")
        q, kv = (self._head_count(i) for i in (0, 1))
        if q != kv:
            raise self._refusal(f"{q} heads of queries share {kv} heads of keys")

    def _head_count(self, position: int) -> Any:
        shape = self.node.inputs[position].shape
        if shape and len(shape) == 4:
            return shape[1]
        return self.node.attrs.get("kv_num_heads" if position else "q_num_heads")

    def _masked(self, scores: gs.Variable, mask: gs.Tensor) -> gs.Variable:
        if np.dtype(mask.dtype) == np.bool_:
            low = self._constant("masked", float(np.finfo(self.dtype).min))
            return self._emit("Where", "Mask", [mask, scores, low])
        return self._emit("Add", "Mask", [scores, mask])

    def _heads(self, tensor: gs.Tensor, name: str, heads: int, order: Sequence[int]) -> gs.Variable:
        apart = self._reshape(f"{name}Heads", tensor, (0, 0, heads, -1))
        return self._emit("Transpose", name, [apart], perm=list(order))

    def _reshape(
        self, name: str, tensor: gs.Tensor, shape: Sequence[int], output: gs.Variable | None = None
    ) -> gs.Variable:
        target = gs.Constant(self._name(f"{name}_shape"), np.array(shape, np.int64))
        return self._emit("Reshape", name, [tensor, target], output)

    def _constant(self, name: str, value: float) -> gs.Constant:
        return gs.Constant(self._name(name), np.array(value, self.dtype))

    def _emit(
        self,
        op: str,
        name: str,
        inputs: Sequence[gs.Tensor],
        output: gs.Variable | None = None,
        **attrs: Any,
    ) -> gs.Variable:
        if output is None:
            output = gs.Variable(self._name(f"{name}_out"), self.dtype)
        self.made.append(
            gs.Node(op, self._name(name), attrs, inputs=list(inputs), outputs=[output])
        )
        return output

    def _name(self, name: str) -> str:
        return f"{self.node.name}/{name}"

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"attention cannot be spelled out for this target: {why}",
            where=f"node '{self.node.name}' (Attention)",
            hint="export with an opset of 22 or older",
        )
