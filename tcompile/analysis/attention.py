"""Finding attention: softmax(Q·Kᵀ)·V however it is spelled, by where the axes go.

A core is a Softmax over the last axis whose logits come from a product of two live tensors and
whose result is contracted with a third, or an ai.onnx `Attention` (opset 23). Exporters spell it in
many more ways; all are one of these two after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention_match import AttentionMatch, match_attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.core.graph import attr


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
    """Return every attention of the graph, in execution order."""
    found: list[Attention] = []
    for node in graph.nodes:
        match = match_attention(node, facts.is_live)
        if match is not None and (node.op == "Attention" or _over_keys(node, facts)):
            found.append(_attention(match, facts, len(found)))
    return found


def _over_keys(softmax: gs.Node, facts: Facts) -> bool:
    """Tell whether a softmax goes over the last axis of logits that follow from the image."""
    logits = softmax.inputs[0]
    rank = len(logits.shape)
    return rank >= 3 and int(attr(softmax, "axis", -1)) % rank == rank - 1 and facts.is_live(logits)


def _attention(match: AttentionMatch, facts: Facts, index: int) -> Attention:
    node, (q, k, v) = match.node, match.operands
    if node.op == "Attention":
        heads = _heads(facts.of(q)[:2]) if len(q.shape) == 4 else int(attr(node, "q_num_heads"))
        rows, columns = facts.of(q)[-2], facts.of(k)[-2]
    else:
        *leading, rows, columns = facts.of(node.inputs[0])
        heads = _heads(leading)
    return Attention(
        index=index,
        form="op" if node.op == "Attention" else "softmax",
        node=node.name,
        q=q.name,
        k=k.name,
        v=v.name,
        product=match.product.name,
        chain=tuple(n.name for n in match.before),
        context=match.mix.outputs[0].name,
        rows=rows,
        columns=columns,
        heads=heads,
    )


def _heads(axes: Sequence[Axis]) -> int:
    """Return the product of the leading axes of the logits, the batch left out."""
    return prod(digit.size for axis in axes for digit in axis if digit.root.kind != "batch")
