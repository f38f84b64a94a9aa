"""Token space, residual stream, blocks: the parts of a transformer that tokens may leave from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis, Piece
from tcompile.analysis.facts import Facts
from tcompile.analysis.groups import Grouping
from tcompile.ir import consumers, is_const, producer

_MOST_SEGMENTS = 64
#: Ops that leave a tensor's tokens as they are; a residual may be read through them.
PASSING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity")


@dataclass(frozen=True)
class Order:
    """Another order of the patches, or of their groups, that a Gather puts them in.

    Attributes:
        name: of its index set.
        groups: whether groups are ordered, not tokens.
        permutation: the position in the first order of each one in this.
    """

    name: str
    groups: bool
    permutation: tuple[int, ...]


@dataclass(frozen=True)
class TokenSpace:
    """The token axis of a model.

    Attributes:
        axis: all N tokens.
        pieces: its parts in order; the one that is not fixed holds the patches.
        patch: index of the patches in `pieces`, of their first part where they are several.
        segments: parts of equal size that the patches fall into (frames, windows), each of which
            some attention sees apart: the same number of tokens leaves each.
        grid: (h, w) of the patches, or (T,) where they never were a grid.
        orders: other orders of patches or groups, by the axis that they give.
        runs: each run of pieces, by its axis.
        grouping: the groups that a later part of the model joins patches into, if it does.
    """

    axis: Axis
    pieces: tuple[Piece, ...]
    patch: int
    grid: tuple[int, ...]
    grouping: Grouping | None = None
    segments: int = 1
    orders: dict[Axis, Order] = field(default_factory=dict, compare=False, repr=False)
    runs: dict[Axis, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.runs:
            for first in range(len(self.pieces)):
                for last in range(first + 1, len(self.pieces) + 1):
                    self.runs.setdefault(ax.from_pieces(self.pieces[first:last]), (first, last))

    @property
    def total(self) -> int:
        return ax.size(self.axis)

    @property
    def tiles(self) -> str:
        """What tokens of tiles with special tokens of their own are; empty where there are none."""
        inner = [d for d in self.axis if any(p.fixed for p in d.root.pieces)]
        if len(self.axis) < 2 or not inner:
            return ""
        parts = [f"{p.size} {'special' if p.fixed else 'patches'}" for p in inner[0].root.pieces]
        return (
            f"its tokens are those of {self.total // inner[0].size} tiles, each with special tokens "
            f"of its own ({', '.join(parts)}), which tcompile does not reduce"
        )

    @property
    def end(self) -> int:
        """Index of the first piece behind the patches."""
        return self.patch + self.segments

    @property
    def patches(self) -> int:
        return sum(p.size for p in self.pieces[self.patch : self.end])

    @property
    def whole_patches(self) -> Axis | None:
        """The axis of the patches alone, where they are all there is of it."""
        parts = self.pieces[self.patch : self.end]
        axis = parts[0].axis
        return axis if ax.size(axis) == self.patches and parts[0].start == 0 else None

    @property
    def prefix(self) -> int:
        """Tokens before the patches (CLS, distillation, registers)."""
        return sum(p.size for p in self.pieces[: self.patch])

    @property
    def suffix(self) -> int:
        """Fixed tokens after the patches."""
        return sum(p.size for p in self.pieces[self.end :])


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
    def parallel(self) -> bool:
        """Whether attention and MLP are added at once, so that nothing lies between them."""
        return self.joined and self.after_attention == self.stream_out


@dataclass(frozen=True)
class Residual:
    """Attentions whose result is added to a stream.

    Attributes:
        attentions: those that reach the same add.
        stream: the tensor they are added to.
        after: the sum.
        axis: the token axis of the stream.
        joined: whether something else was added to their result first.
    """

    attentions: tuple[Attention, ...]
    stream: str
    after: str
    axis: Axis
    joined: bool


def token_axis(facts: Facts, tensor: gs.Tensor) -> Axis:
    """What a tensor's dims, batch and features left out, run over together: its tokens."""
    return ax.normal(
        d for axis in facts.of(tensor) for d in axis if d.root.kind not in ("batch", "weak")
    )


def residuals(graph: gs.Graph, facts: Facts, attentions: Sequence[Attention]) -> list[Residual]:
    """Every residual add of an attention, in execution order."""
    tensors = graph.tensors()
    order = {id(n): i for i, n in enumerate(graph.nodes)}
    found: dict[str, Residual] = {}
    for core in attentions:
        add = _residual_add(graph, facts, tensors[core.context], order)
        if add is None:
            continue
        stream, after, joined = add
        if after in found:
            known = found[after]
            found[after] = replace(known, attentions=(*known.attentions, core))
        else:
            axis = token_axis(facts, tensors[stream])
            found[after] = Residual((core,), stream, after, axis, joined)
    return list(found.values())


def token_space(found: Sequence[Residual], prefix: int | None = None) -> TokenSpace | None:
    """The token axis of most blocks, the larger of equals, and its parts.

    Args:
        prefix: how many tokens at its beginning are no patches, where the person says so.
    """
    votes = Counter(r.axis for r in found if ax.size(r.axis) > 1)
    if not votes:
        return None
    axis = max(votes, key=lambda a: (votes[a], ax.size(a)))
    pieces = ax.pieces(axis)
    loose = [i for i, p in enumerate(pieces) if not p.fixed]
    if len(loose) != 1:
        return None
    patch = loose[0]
    if prefix is not None:
        before = sum(p.size for p in pieces[:patch])
        if not before <= prefix < before + pieces[patch].size:
            return None
        pieces, patch = _stated(pieces, patch, prefix - before)
    part = pieces[patch]
    grid = tuple(d.size for d in part.axis) if part.full else (part.size,)
    parts = _segments([r for r in found if r.axis == axis], axis, part)
    pieces = (*pieces[:patch], *parts, *pieces[patch + 1 :])
    return TokenSpace(axis, pieces, patch, grid, segments=len(parts))


def with_orders(space: TokenSpace, facts: Facts) -> TokenSpace:
    """The space with the orders that its patches or groups are put in later."""
    found: dict[Axis, Order] = {}
    for root, (source, index) in facts.permuted.items():
        groups = space.grouping is not None and source == space.grouping.outer
        if groups or (source == space.whole_patches == space.axis):
            found[(ax.Digit(root, 1, root.size),)] = Order(root.name, groups, index)
    return replace(space, orders=found)


def _segments(found: Sequence[Residual], axis: Axis, patch: Piece) -> list[Piece]:
    """The finest parts of the patches that attentions see apart, if all are of one size."""
    bounds = {patch.start, patch.stop}
    for core in (a for r in found for a in r.attentions if a.columns != axis):
        parts = ax.pieces(core.columns)
        if len(parts) != 1 or parts[0].axis != patch.axis or core.rows != core.columns:
            return [patch]
        bounds |= {parts[0].start, parts[0].stop}
    marks = sorted(bounds)
    found_parts = [Piece(patch.axis, a, b) for a, b in pairwise(marks)]
    equal = len({p.size for p in found_parts}) == 1 and marks[0] == patch.start
    return found_parts if equal and len(found_parts) <= _MOST_SEGMENTS else [patch]


def _stated(pieces: tuple[Piece, ...], patch: int, more: int) -> tuple[tuple[Piece, ...], int]:
    """Count the first `more` patches as fixed tokens."""
    if more == 0:
        return pieces, patch
    part = pieces[patch]
    middle = part.start + more
    cut = (Piece(part.axis, part.start, middle), Piece(part.axis, middle, part.stop))
    return (*pieces[:patch], *cut, *pieces[patch + 1 :]), patch + 1


def find_blocks(
    graph: gs.Graph, facts: Facts, found: Sequence[Residual], space: TokenSpace
) -> list[Block]:
    """The blocks: each residual add of an attention to a stream of the token space."""
    tensors = graph.tensors()
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
    if not ax.roots(columns) & inside:
        return ()
    return tuple(d.size for d in columns if d.root.kind != "batch")


def carries(facts: Facts, tensor: gs.Tensor, space: TokenSpace) -> bool:
    """Whether the dims of the tensor run over all tokens, possibly merged with the batch."""
    axis, width = token_axis(facts, tensor), len(space.axis)
    return any(axis[i : i + width] == space.axis for i in range(len(axis) - width + 1))


def _residual_add(
    graph: gs.Graph, facts: Facts, context: gs.Tensor, order: dict[int, int]
) -> tuple[str, str, bool] | None:
    """First Add of a descendant of `context` to tokens that it descends from.

    Gives the stream, the sum, and whether other tokens were added on the way.
    """
    joined = False
    above = ancestors(context)
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
                return str(stream.name), str(node.outputs[0].name), joined
            joined = joined or (facts.is_live(other) and bool(token_axis(facts, other)))
        if node.op in ("Softmax", "Attention") and len(node.inputs[0].shape) >= 3:
            return None  # the next attention begins: this one had no residual
        below.update(t.name for t in node.outputs)
    return None


def _stream(tensor: gs.Tensor, above: set[str]) -> gs.Tensor | None:
    """The tensor itself or what it was quantised or cast from, if it is among the ancestors."""
    current: gs.Tensor | None = tensor
    while current is not None and current.name not in above:
        maker = producer(current)
        current = maker.inputs[0] if maker is not None and maker.op in PASSING else None
    return current


def ancestors(tensor: gs.Tensor) -> set[str]:
    """Names of everything the tensor was computed from."""
    found: set[str] = set()
    pending = [tensor]
    while pending:
        maker = producer(pending.pop())
        for source in maker.inputs if maker is not None else []:
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
    """What reads the tensor and as which operand, also through views that keep every token."""
    found: list[tuple[gs.Node, int]] = []
    for node, operand in consumers(tensor):
        view = node.op in (*PASSING, "Reshape", "Transpose")
        if view and operand == 0 and carries(facts, node.outputs[0], space):
            found += _readers(facts, node.outputs[0], space)
        else:
            found.append((node, operand))
    return found
