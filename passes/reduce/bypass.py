"""Tokens that are bypassed around a block: what is written where they leave, and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.structure import Block
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState


@dataclass(frozen=True)
class Bypass:
    """The tensors that are needed where the tokens return.

    Attributes:
        rows: [B, N, C], the stream as it entered the block.
        stage: the tokens that ran through the block.
        merged: the others are part of these.
    """

    rows: gs.Tensor
    stage: TokenState
    merged: bool = False


def copies(b: Builder, region: Sequence[gs.Node], block: Block) -> dict[str, gs.Node]:
    """Copies of the nodes of a block that lead to softmax·V, by the originals' names.

    They read the whole stream, so that a score can be taken of every token; what the score does not
    read of them is removed in the end.
    """
    made: dict[str, gs.Node] = {}
    left = {a.context for a in block.attentions}
    copied: dict[str, gs.Tensor] = {}
    for node in region:
        outputs = []
        for out in node.outputs:
            copied[out.name] = gs.Variable(b.name(f"all/{out.name}"), out.dtype, out.shape)
            outputs.append(copied[out.name])
        inputs = [copied.get(t.name, t) for t in node.inputs]
        copy = gs.Node(
            node.op, b.name(f"all/{node.name}"), dict(node.attrs), inputs, outputs, node.domain
        )
        made[node.name] = copy
        b.graph.nodes.append(copy)
        left -= {str(out.name) for out in node.outputs}
        if not left:
            break
    return made


def returned(
    b: Builder, rows: gs.Tensor, kept: gs.Tensor, index: gs.Tensor, count: int, total: int
) -> gs.Tensor:
    """[B, N, C]: `rows` with those at `index` [B, K] replaced by `kept` [B, K, C].

    Args:
        count, total: K and N.
    """
    slots = b.const(np.arange(count))
    stay = b.const(count + np.arange(total))
    return b.call(
        "TcReturnTokens", rows, kept, index, slots, stay, dtypes=[kept.dtype], fp32=False
    )[0]
