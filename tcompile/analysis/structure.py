"""Residual stream and blocks: the parts of a transformer that tokens may leave from."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import Residual, TokenSpace
from tcompile.core.graph import consumers, is_const, producer, tensors_of
from tcompile.core.op_traits import PASSES, READS_SHAPE


@dataclass(frozen=True)
class Block:
    """One transformer layer, by tensor names.

    Attributes:
        index: its number.
        attentions: its attentions; several where windows or frames attend apart.
        stream_in: the residual stream it reads.
        after_attention: the stream after the attention residual add (site `attn`).
        stream_out: the stream it leaves (site `block`).
        window: what a query sees, where that is not every token: the sides of its window.
        over_tokens: whether queries and keys are the tokens, all or those of a segment.
        joined: what the attention gave was added to something else before the stream.
    """

    index: int
    attentions: tuple[Attention, ...]
    stream_in: str
    after_attention: str
    stream_out: str
    window: tuple[int, ...] = ()
    over_tokens: bool = True
    joined: bool = False

    @property
    def attention(self) -> Attention:
        """Its (first) attention."""
        return self.attentions[0]

    @property
    def several(self) -> bool:
        """Return whether more than one attention sees the same tokens."""
        return len({a.columns for a in self.attentions}) < len(self.attentions)

    @property
    def unread(self) -> str:
        """Why scores may not read its attention; empty where they may."""
        if not self.over_tokens:
            return "is not over all the tokens"
        return next((a.unreadable for a in self.attentions if a.unreadable), "")

    @property
    def parallel(self) -> bool:
        """Return whether attention and MLP are added at once, so that nothing lies between them."""
        return self.joined and self.after_attention == self.stream_out


def token_axis(facts: Facts, tensor: gs.Tensor) -> Axis:
    """The tokens of a tensor: what its dims but batch and features run over together."""
    digits = [
        d for axis in facts.of(tensor) for d in axis if d.root.kind not in ("batch", "untracked")
    ]
    # A fixed token by itself may leave its digit on a batch of one; among others it says nothing.
    return ax.normal([d for d in digits if d.size > 1] or digits)


def residuals(graph: gs.Graph, facts: Facts, attentions: Sequence[Attention]) -> list[Residual]:
    """Every residual add of an attention, in execution order."""
    tensors, lineage = tensors_of(graph), Lineage(graph)
    order = {id(n): i for i, n in enumerate(graph.nodes)}
    found: dict[str, Residual] = {}
    for core in attentions:
        add = _residual_add(graph, facts, tensors[core.context], order, lineage)
        if add is None:
            continue
        stream, after, joined = add
        if after in found:
            known = found[after]
            found[after] = replace(known, attentions=(*known.attentions, core))
        else:
            axis = token_axis(facts, tensors[stream])
            found[after] = Residual((core,), stream, after, axis, joined)
    added = {core.index for one in found.values() for core in one.attentions}
    for core in (a for a in attentions if a.index not in added):
        one = _added_beside(found.values(), lineage, core)
        if one is not None:
            cores = sorted((*one.attentions, core), key=lambda a: a.index)
            found[one.after] = replace(one, attentions=tuple(cores))
    return list(found.values())


def _added_beside(found: Iterable[Residual], lineage: Lineage, core: Attention) -> Residual | None:
    """The residual whose sum takes in this attention too, beside one over the same tokens:
    (x + a) + b."""
    reads = lineage.above(core.context)
    for one in found:
        alike = core.rows == core.columns and core.columns in {a.columns for a in one.attentions}
        if not (one.joined and alike and one.stream in reads):
            continue
        before = core.context in lineage.above(one.stream)
        if core.context in lineage.above(one.after) and not before:
            return one
    return None


def find_blocks(
    graph: gs.Graph, facts: Facts, found: Sequence[Residual], space: TokenSpace
) -> list[Block]:
    """The blocks: each residual add of an attention to a stream of the token space."""
    tensors = tensors_of(graph)
    mine = [r for r in found if r.axis == space.axis]
    blocks: list[Block] = []
    for i, one in enumerate(mine):
        if i + 1 < len(mine):
            out = mine[i + 1].stream
        else:
            out = _last_add(facts, tensors[one.after], space)
        over = all(a.columns in space.runs and a.rows == a.columns for a in one.attentions)
        window = () if over else _window(one.attentions, space)
        blocks.append(
            Block(i, one.attentions, one.stream, one.after, out, window, over, one.joined)
        )
    return blocks


def _window(attentions: tuple[Attention, ...], space: TokenSpace) -> tuple[int, ...]:
    """The sides of what one query sees of the tokens; empty where it sees something else."""
    inside = ax.roots(space.axis)
    columns = attentions[0].columns
    if columns in space.runs or not ax.roots(columns) & inside:
        return ()
    return tuple(d.size for d in columns if d.root.kind != "batch")


def carries(facts: Facts, tensor: gs.Tensor, space: TokenSpace) -> bool:
    """Return whether the dims of the tensor run over all tokens, possibly merged with the batch."""
    axis, width = token_axis(facts, tensor), len(space.axis)
    return any(axis[i : i + width] == space.axis for i in range(len(axis) - width + 1))


def _residual_add(
    graph: gs.Graph, facts: Facts, context: gs.Tensor, order: dict[int, int], lineage: Lineage
) -> tuple[str, str, bool] | None:
    """First Add of a descendant of `context` to tokens that it descends from.

    Gives the stream, the sum, and whether other tokens were added on the way.
    """
    joined = False
    above = lineage.above(context.name)
    below = {context.name}
    maker = producer(context)
    start = order[id(maker)] + 1 if maker is not None else 0
    for node in graph.nodes[start:]:
        inside = [t.name in below for t in node.inputs]
        if not any(inside):
            continue
        if node.op == "Add" and sum(inside) == 1:
            other = node.inputs[inside.index(False)]
            stream = _stream(other, above)
            if stream is not None and facts.is_live(stream) and token_axis(facts, stream):
                after, beside = _beside(facts, node.outputs[0], stream, lineage)
                return str(stream.name), str(after.name), joined or beside
            joined = joined or (facts.is_live(other) and bool(token_axis(facts, other)))
        if node.op in ("Softmax", "Attention") and len(node.inputs[0].shape) >= 3:
            return None  # the next attention begins: this one had no residual
        below.update(t.name for t in node.outputs)
    return None


def _beside(
    facts: Facts, total: gs.Tensor, stream: gs.Tensor, lineage: Lineage
) -> tuple[gs.Tensor, bool]:
    """The sum with something else made of the same stream (an MLP in parallel), and True, where
    the sum of stream and attention gets that at once; else the sum itself, and False."""
    readers = list(total.outputs)
    if len(readers) != 1 or readers[0].op != "Add" or len(readers[0].inputs) != 2:
        return total, False
    first, second = readers[0].inputs
    other = second if first is total else first
    if is_const(other) or not token_axis(facts, other):
        return total, False
    above = lineage.above(other.name)
    beside = stream.name in above and total.name not in above
    return (readers[0].outputs[0], True) if beside else (total, False)


def _stream(tensor: gs.Tensor, above: Container[str]) -> gs.Tensor | None:
    """The tensor itself or what it was scaled, quantised or cast from, if it is an ancestor."""
    current: gs.Tensor | None = tensor
    while current is not None and current.name not in above:
        current = _unscaled(producer(current))
    return current


def _unscaled(node: gs.Node | None) -> gs.Tensor | None:
    """The tensor that a node passes on, at most scaled by a constant."""
    if node is None:
        return None
    if node.op in PASSES or (node.op == "Div" and is_const(node.inputs[1])):
        return node.inputs[0]
    if node.op == "Mul" and sum(map(is_const, node.inputs)) == 1:
        return next(t for t in node.inputs if not is_const(t))
    return None


class Lineage:
    """What every tensor of a graph was computed from, found in one pass over it: a bit for each."""

    def __init__(self, graph: gs.Graph) -> None:
        self._bits: dict[str, int] = {}
        self._above: dict[str, int] = {}
        for node in graph.nodes:
            above = 0
            for tensor in node.inputs:
                if not is_const(tensor):
                    bit = self._bits.setdefault(tensor.name, len(self._bits))
                    above |= self._above.get(tensor.name, 0) | 1 << bit
            self._above.update((t.name, above) for t in node.outputs)

    def above(self, tensor: str) -> Above:
        """Names of everything a tensor was computed from."""
        return Above(self._bits, self._above.get(tensor, 0))


@dataclass(frozen=True)
class Above:
    """A set of tensor names."""

    _bits: Mapping[str, int]
    _mask: int

    def __contains__(self, name: object) -> bool:
        bit = self._bits.get(name)  # type: ignore[call-overload]
        return bit is not None and bool(self._mask >> bit & 1)


def ancestors(tensor: gs.Tensor, *, shapes: bool = True) -> set[str]:
    """Names of everything the tensor was computed from.

    Args:
        shapes: also of what only its shape was taken from, such as how many images there are.
    """
    found: set[str] = set()
    pending = [tensor]
    while pending:
        maker = producer(pending.pop())
        if maker is None or (maker.op in READS_SHAPE and not shapes):
            continue
        for source in maker.inputs:
            if source.name not in found and not is_const(source):
                found.add(source.name)
                pending.append(source)
    return found


def _last_add(facts: Facts, stream: gs.Tensor, space: TokenSpace) -> str:
    """Follow x → x + f(x) from `stream` as long as there is one; the last block's output."""
    while True:
        for node, operand in _readers(facts, stream, space):
            if node.op != "Add" or len(node.inputs) != 2:
                continue
            other = node.inputs[1 - operand]
            if not is_const(other) and carries(facts, other, space):
                stream = node.outputs[0]
                break
        else:
            return str(stream.name)


def _readers(facts: Facts, tensor: gs.Tensor, space: TokenSpace) -> list[tuple[gs.Node, int]]:
    """The readers of a tensor and as which operand, also through views that keep every token."""
    found: list[tuple[gs.Node, int]] = []
    for node, operand in consumers(tensor):
        view = operand == 0 and node.op in ("Reshape", "Transpose")
        if (view or _unscaled(node) is tensor) and carries(facts, node.outputs[0], space):
            found += _readers(facts, node.outputs[0], space)
        else:
            found.append((node, operand))
    return found
