"""Matching plain attention: softmax(Q·Kᵀ)·V.

A core is a Softmax over the last axis whose logits come from a product of two live tensors and
whose result is contracted with a third, or an ai.onnx `Attention` (opset 23). Exporters spell it in
many more ways; all are one of these two after normalisation.

The analysis, the roofline and the check of an engine's kernels all find attention here.
`match_attention` takes any onnx-graphsurgeon graph: in normal form, reduced, or lowered and read
back. `analysis.find_attention` adds what the axes say, and attentions that are not plain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis
from tcompile.core.graph import is_const, producer


@dataclass(frozen=True)
class Attention:
    """One attention, by names that stay valid in copies of the graph.

    Attributes:
        index: its place in execution order.
        node: name of the Softmax or Attention node.
        q, k, v: tensor names; `k` is the right operand of Q·Kᵀ, already transposed when `form` is
            decomposed.
        product: name of the Q·Kᵀ node (`softmax` form) or of the Attention node.
        mix: name of the node that multiplies with V, or of the Attention node.
        chain: names of the nodes from the product (excluded) to the softmax (excluded), in order.
        context: tensor name of softmax·V.
        rows, columns: what queries and keys run over; the keys that are tokens, where learned keys
            or sink columns stand beside them.
        heads: number of heads.
        seen: what the softmax runs over, such learned keys and sinks included.
        valued: what V has rows for.
        form: `softmax` (decomposed), `op` (ai.onnx Attention), or `sum` where nothing normalises
            over the keys.
        plain: whether it is matched by its nodes, not by its axes.
        unusual: what sets it apart from a plain attention, in words.
        unreadable: why a score cannot read its probabilities; empty where it can.
        unweighed: why merged tokens cannot be weighed by size; empty where they can.
    """

    index: int
    form: Literal["softmax", "op", "sum"]
    node: str
    q: str
    k: str
    v: str
    product: str
    mix: str
    chain: tuple[str, ...]
    context: str
    rows: Axis
    columns: Axis
    heads: int
    seen: Axis = ()
    valued: Axis = ()
    plain: bool = True
    unusual: tuple[str, ...] = ()
    unreadable: str = ""
    unweighed: str = ""

    @property
    def self_attention(self) -> bool:
        """Queries and keys are the same tokens."""
        return self.rows == self.columns and ax.tracked(self.rows)

    @property
    def beside(self) -> tuple[int, int]:
        """How many learned keys or sink columns stand before the tokens, and behind them."""
        parts = ax.pieces(self.seen)
        for start in range(len(parts) if self.seen != self.columns else 0):
            for stop in range(start + 1, len(parts) + 1):
                if ax.from_pieces(parts[start:stop]) == self.columns:
                    return sum(p.size for p in parts[:start]), sum(p.size for p in parts[stop:])
        return 0, 0

    @property
    def sinks(self) -> bool:
        """Return whether what stands beside the tokens is joined to the logits, not to K and V."""
        return ax.size(self.valued) < ax.size(self.seen)

    @property
    def query_rows(self) -> int:
        """The number of queries; one in an attention-pool head."""
        return ax.size(self.rows)


Side = Literal["before", "after", "both"]

#: Operators that may stand between Q·Kᵀ and the softmax, between the softmax and ·V, or at both
#: places; and whether TensorRT's fused attention kernels compute them as well. Seen in engines of
#: TensorRT-RTX 1.7.1: Tanh (soft-capped scores) leaves two products and a softmax behind. Clip
#: inside a half precision attention could not be tried; Q/DQ is where a kernel of 8 bits wants it.
BETWEEN: dict[str, tuple[Side, bool]] = {
    "Add": ("before", True),
    "Sub": ("before", True),
    "Div": ("before", True),
    "Clip": ("before", False),
    "Tanh": ("before", False),
    "Mul": ("both", True),
    "Cast": ("both", True),
    "Where": ("both", True),
    "Identity": ("both", True),
    "Reshape": ("both", True),
    "QuantizeLinear": ("both", True),
    "DequantizeLinear": ("both", True),
    "IsNaN": ("after", True),
    "Dropout": ("after", True),
}
#: What joins sink columns to logits.
JOINS = frozenset({"Concat", "Pad"})
BEFORE_SOFTMAX = frozenset(op for op, (side, _) in BETWEEN.items() if side != "after")
AFTER_SOFTMAX = frozenset(op for op, (side, _) in BETWEEN.items() if side != "before")


@dataclass(frozen=True, eq=False)
class AttentionMatch:
    """The nodes of one attention.

    Attributes:
        node: the Softmax, or the `Attention` operator.
        product: Q·Kᵀ; of an operator, the operator.
        mix: softmax·V; of an operator, the operator.
        before: from the product to the softmax, both excluded, in order.
        after: what the probabilities pass on their way to ·V.
    """

    node: gs.Node
    product: gs.Node
    mix: gs.Node
    before: tuple[gs.Node, ...] = ()
    after: tuple[gs.Node, ...] = ()

    @property
    def operands(self) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        """Q, K and V; K as the product takes it, which is transposed in plain operators."""
        if self.node.op == "Attention":
            q, k, v = self.node.inputs[:3]
            return q, k, v
        q, k = self.product.inputs
        return q, k, self.mix.inputs[1]

    @property
    def queries(self) -> int | str | None:
        """The number of query rows, the last axis but one of Q; None where it is not known."""
        shape = self.node.outputs[0].shape
        return shape[-2] if shape is not None and len(shape) >= 2 else None

    @property
    def nodes(self) -> tuple[gs.Node, ...]:
        """All of its nodes, in the order in which they run."""
        if self.node is self.product:
            return (self.node,)
        return (self.product, *self.before, self.node, *self.after, self.mix)

    @property
    def unfused_ops(self) -> tuple[str, ...]:
        """Operators inside that a fused kernel of TensorRT does not compute; K as a weight among
        them, which makes Q·Kᵀ a linear layer."""
        ops = [str(n.op) for n in (*self.before, *self.after) if not BETWEEN[n.op][1]]
        return (*ops, *(["MatMul with a weight"] if is_const(self.operands[1]) else []))

    def read_elsewhere(self, graph: gs.Graph) -> bool:
        """Tell whether anything else reads the scores or the probabilities, which keeps TensorRT
        from fusing the attention."""
        inside = {id(n) for n in self.nodes}
        outputs = {t.name for t in graph.outputs}
        return any(
            t.name in outputs or any(id(reader) not in inside for reader in t.outputs)
            for n in self.nodes
            if n is not self.mix
            for t in n.outputs
        )


def _is_data(tensor: gs.Tensor) -> bool:
    return not is_const(tensor)


def match_attention(
    node: gs.Node, is_data: Callable[[gs.Tensor], bool] = _is_data
) -> AttentionMatch | None:
    """Return the attention whose softmax, or whose whole, a node is; None where it is neither.

    Args:
        is_data: tells tensors that follow from the model's input from constants. V must be one, and
            of Q and K one at least: a probe's query may be a constant.
    """
    if node.op == "Attention" and node.domain in (None, "", "ai.onnx"):
        return AttentionMatch(node, node, node)
    if node.op != "Softmax":
        return None
    path = _to_product(node.inputs[0], is_data)
    if path is None:
        return None
    mix, after = _to_mix(node.outputs[0], is_data)
    if mix is None:
        return None
    return AttentionMatch(node, path[0], mix, tuple(path[1:]), tuple(after))


def attentions(graph: gs.Graph) -> list[AttentionMatch]:
    """Return all attentions of a graph, in its order."""
    return [found for node in graph.nodes if (found := match_attention(node)) is not None]


def _to_product(tensor: gs.Tensor, is_data: Callable[[gs.Tensor], bool]) -> list[gs.Node] | None:
    """Walk up from the logits to Q·Kᵀ; the nodes on the way, the product first."""
    node = producer(tensor)
    if node is None:
        return None
    if node.op == "MatMul":
        return [node] if any(map(is_data, node.inputs)) else None
    if node.op not in BEFORE_SOFTMAX:
        return None
    for operand in node.inputs:
        if not is_data(operand) or (node.op != "Reshape" and not _alike(operand, tensor)):
            continue
        path = _to_product(operand, is_data)
        if path is not None:
            return [*path, node]
    return None


def _alike(operand: gs.Tensor, result: gs.Tensor) -> bool:
    """Tell whether an operand has the result's shape, as far as both are known: a mask that is
    computed by products has fewer axes."""
    known = operand.shape is not None and result.shape is not None
    return not known or list(operand.shape) == list(result.shape)


def _to_mix(
    tensor: gs.Tensor, is_data: Callable[[gs.Tensor], bool]
) -> tuple[gs.Node | None, list[gs.Node]]:
    """Walk down from the probabilities to ·V; that product, and the nodes on the way."""
    mix, reached, tensors = None, list[gs.Node](), [tensor]
    for probabilities in tensors:
        for node in probabilities.outputs:
            if node.op == "MatMul":
                is_mix = node.inputs[0] is probabilities and is_data(node.inputs[1])
                mix = node if mix is None and is_mix else mix
            elif node.op in AFTER_SOFTMAX and not any(node is seen for seen in reached):
                reached.append(node)
                tensors.append(node.outputs[0])
    return mix, reached
