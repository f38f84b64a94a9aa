"""Token space, residual stream, blocks: the parts of a transformer that tokens may leave from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis, Piece
from tcompile.analysis.facts import Facts
from tcompile.ir import is_const, producer


@dataclass(frozen=True)
class TokenSpace:
    """The token axis of a model.

    Attributes:
        axis: all N tokens.
        pieces: its parts in order; the one that is not fixed holds the patches.
        patch: index of the patches in `pieces`.
        grid: (h, w) of the patches, or (T,) where they never were a grid.
    """

    axis: Axis
    pieces: tuple[Piece, ...]
    patch: int
    grid: tuple[int, ...]

    @property
    def total(self) -> int:
        return ax.size(self.axis)

    @property
    def patches(self) -> int:
        return self.pieces[self.patch].size

    @property
    def prefix(self) -> int:
        """Tokens before the patches (CLS, distillation, registers)."""
        return sum(p.size for p in self.pieces[: self.patch])

    @property
    def suffix(self) -> int:
        """Fixed tokens after the patches."""
        return sum(p.size for p in self.pieces[self.patch + 1 :])


@dataclass(frozen=True)
class Block:
    """One transformer layer, by tensor names.

    Attributes:
        index: its number.
        attention: its self-attention.
        stream_in: the residual stream it reads.
        after_attention: the stream after the attention residual add (site `attn`).
        stream_out: the stream it leaves (site `block`).
    """

    index: int
    attention: Attention
    stream_in: str
    after_attention: str
    stream_out: str


def token_space(attentions: list[Attention]) -> TokenSpace | None:
    """The axis most self-attentions run over, and its parts."""
    votes = Counter(a.columns for a in attentions if a.self_attention)
    if not votes:
        return None
    axis = max(votes, key=lambda a: (votes[a], ax.size(a)))
    pieces = ax.pieces(axis)
    loose = [i for i, p in enumerate(pieces) if not p.fixed]
    if len(loose) != 1:
        return None
    patch = pieces[loose[0]]
    grid = tuple(d.size for d in patch.axis) if patch.full else (patch.size,)
    return TokenSpace(axis, pieces, loose[0], grid)


def find_blocks(
    graph: gs.Graph, facts: Facts, attentions: list[Attention], space: TokenSpace
) -> list[Block]:
    """The blocks: each self-attention over the token space whose result is added to a stream."""
    tensors = graph.tensors()
    order = {id(n): i for i, n in enumerate(graph.nodes)}
    added: list[tuple[Attention, str, str]] = []
    for core in attentions:
        if core.self_attention and core.columns == space.axis:
            add = _residual_add(graph, facts, tensors[core.context], order, space)
            if add is not None:
                added.append((core, *add))
    blocks: list[Block] = []
    for i, (core, stream_in, after) in enumerate(added):
        if i + 1 < len(added):
            out = added[i + 1][1]
        else:
            out = _last_add(facts, tensors[after], space)
        blocks.append(Block(i, core, stream_in, after, out))
    return blocks


def carries(facts: Facts, tensor: gs.Tensor, space: TokenSpace) -> bool:
    """Whether some dim of the tensor runs over all tokens, possibly merged with the batch."""
    width = len(space.axis)
    for axis in facts.of(tensor):
        if any(axis[i : i + width] == space.axis for i in range(len(axis) - width + 1)):
            return True
    return False


def _residual_add(
    graph: gs.Graph, facts: Facts, context: gs.Tensor, order: dict[int, int], space: TokenSpace
) -> tuple[str, str] | None:
    """First Add of a descendant of `context` to a live tensor that is none: (stream, result)."""
    below = {context.name}
    maker = producer(context)
    start = order[id(maker)] + 1 if maker is not None else 0
    for node in graph.nodes[start:]:
        inside = [t.name in below for t in node.inputs]
        if not any(inside):
            continue
        if node.op == "Add" and sum(inside) == 1:
            other = node.inputs[inside.index(False)]
            if facts.is_live(other) and carries(facts, other, space):
                return other.name, node.outputs[0].name
        if node.op == "Softmax":
            return None  # the next attention begins: this one had no residual
        below.update(t.name for t in node.outputs)
    return None


def _last_add(facts: Facts, stream: gs.Tensor, space: TokenSpace) -> str:
    """Follow x → x + f(x) from `stream` as long as there is one; the last block's output."""
    while True:
        for node in stream.outputs:
            if node.op != "Add" or len(node.inputs) != 2:
                continue
            other = node.inputs[1] if node.inputs[0] is stream else node.inputs[0]
            if other is not stream and not is_const(other) and carries(facts, other, space):
                stream = node.outputs[0]
                break
        else:
            return str(stream.name)
