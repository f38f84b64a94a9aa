"""Finding attention: softmax(Q·Kᵀ)·V however it is spelled, by where the axes go.

A core is a Softmax over the last axis whose logits come from a product of two live tensors and
whose result is contracted with a third, or an ai.onnx `Attention` (opset 23). EXPORTS section 2
lists 177 spellings; all are one of these two after normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.core.graph import attr, is_const, producer, shape

#: What may stand between Q·Kᵀ and Softmax, and between Softmax and ·V.
_QDQ = {"QuantizeLinear", "DequantizeLinear"}
BEFORE_SOFTMAX = _QDQ | {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Cast",
    "Where",
    "Clip",
    "Identity",
    "Tanh",
    "Reshape",
}
_AFTER = _QDQ | {"Cast", "Where", "IsNaN", "Dropout", "Identity", "Mul", "Reshape"}


@dataclass(frozen=True)
class Attention:
    """One attention, by names that stay valid in copies of the graph.

    Attributes:
        index: its place in execution order.
        form: `softmax` (decomposed) or `op` (ai.onnx Attention).
        node: name of the Softmax or Attention node.
        q, k, v: tensor names; `k` is the right operand of Q·Kᵀ, already transposed when `form` is
            `softmax`.
        product: name of the Q·Kᵀ node (`softmax` form) or of the Attention node.
        chain: names of the nodes from the product (excluded) to the softmax (excluded), in order.
        context: tensor name of softmax·V.
        rows, columns: what queries and keys run over.
        heads: number of heads.
    """

    index: int
    form: Literal["softmax", "op"]
    node: str
    q: str
    k: str
    v: str
    product: str
    chain: tuple[str, ...]
    context: str
    rows: Axis
    columns: Axis
    heads: int

    @property
    def self_attention(self) -> bool:
        """Queries and keys are the same tokens."""
        return self.rows == self.columns and ax.tracked(self.rows)

    @property
    def query_rows(self) -> int:
        """The number of queries; one in an attention-pool head."""
        return ax.size(self.rows)


def find_attention(graph: gs.Graph, facts: Facts) -> list[Attention]:
    """Every attention of the graph, in execution order."""
    found: list[Attention] = []
    for node in graph.nodes:
        core = None
        if node.op == "Softmax":
            core = _from_softmax(node, facts, len(found))
        elif node.op == "Attention" and node.domain in (None, "", "ai.onnx"):
            core = _from_op(node, facts, len(found))
        if core is not None:
            found.append(core)
    return found


def _from_softmax(node: gs.Node, facts: Facts, index: int) -> Attention | None:
    logits = node.inputs[0]
    rank = len(logits.shape)
    if rank < 3 or int(attr(node, "axis", -1)) % rank != rank - 1 or not facts.is_live(logits):
        return None
    chain: list[str] = []
    product = _product(logits, facts, chain)
    if product is None:
        return None
    reader = _reader(node, facts)
    if reader is None:
        return None
    rows, columns = facts.of(logits)[-2:]
    q, k = product.inputs
    return Attention(
        index,
        "softmax",
        node.name,
        q.name,
        k.name,
        reader.inputs[1].name,
        product.name,
        tuple(reversed(chain)),
        reader.outputs[0].name,
        rows,
        columns,
        _heads(facts.of(logits)[:-2]),
    )


def _heads(axes: tuple[Axis, ...]) -> int:
    """Product of the leading axes of the logits, the batch left out."""
    count = 1
    for axis in axes:
        for digit in axis:
            count *= 1 if digit.root.kind == "batch" else digit.size
    return count


def _product(tensor: gs.Tensor, facts: Facts, chain: list[str]) -> gs.Node | None:
    """Walk up from the logits to Q·Kᵀ."""
    node = producer(tensor)
    if node is None:
        return None
    if node.op == "MatMul":
        # One side may be constant folded (a probe's query), never both.
        return node if any(facts.is_live(t) for t in node.inputs) else None
    if node.op not in BEFORE_SOFTMAX:
        return None
    for operand in node.inputs:
        if is_const(operand) or not facts.is_live(operand):
            continue
        if node.op != "Reshape" and operand.shape is not None and shape(operand) != shape(tensor):
            continue
        mark = len(chain)
        chain.append(node.name)
        product = _product(operand, facts, chain)
        if product is not None:
            return product
        del chain[mark:]
    return None


def _reader(softmax: gs.Node, facts: Facts) -> gs.Node | None:
    """Walk down from the probabilities to ·V."""
    frontier = list(softmax.outputs[0].outputs)
    tensors = {softmax.outputs[0].name}
    while frontier:
        node = frontier.pop(0)
        if node.op == "MatMul" and node.inputs[0].name in tensors:
            if facts.is_live(node.inputs[1]):
                return node
        elif node.op in _AFTER:
            tensors.add(node.outputs[0].name)
            frontier.extend(node.outputs[0].outputs)
    return None


def _from_op(node: gs.Node, facts: Facts, index: int) -> Attention:
    q, k, v = node.inputs[:3]
    heads = _heads(facts.of(q)[:2]) if len(q.shape) == 4 else int(attr(node, "q_num_heads"))
    return Attention(
        index,
        "op",
        node.name,
        q.name,
        k.name,
        v.name,
        node.name,
        (),
        node.outputs[0].name,
        facts.of(q)[-2],
        facts.of(k)[-2],
        heads,
    )
