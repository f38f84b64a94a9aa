"""Everything the analysis says of one model, and which sites are legal."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from math import prod

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.facts import Facts, Origin
from tcompile.analysis.find_attention import find_attention
from tcompile.analysis.meanings import composed, meanings
from tcompile.analysis.propagate import propagate
from tcompile.analysis.sites import Site, find_sites
from tcompile.analysis.space import (
    Residual,
    TokenSpace,
    find_grouping,
    token_axes,
    token_space,
    with_learned,
    with_orders,
)
from tcompile.analysis.structure import Block, Lineage, ancestors, carries, find_blocks, residuals
from tcompile.analysis.towers import Beside, beside, names_of, tower_axes
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import attr, batch_dim, int_to_dim, is_const, is_free, tensors_of, value
from tcompile.core.schedule import Shape

#: Propagations at most: each may show what more axes mean.
_ROUNDS = 4


@dataclass(frozen=True)
class Analysis:
    """The structure of a normalised model, as seen from one of its towers.

    Attributes:
        cls: position of the fixed token that the model reads by itself or returns, counted from
            the front or, after the patches, from the back (-1); None where there is none.
        restorable: nodes behind the last block, which may get every token back.
        readers: positions, counted as `cls`, of the tokens whose attention a `cls` score reads:
            that token, or all of one kind that are read together (detection tokens).
        returned: whether it is not read by itself, only part of an output of all tokens.
        tower: the name of this one of the model's towers.
        others: the other towers, in execution order.
        chosen: whether this one was asked for by name, so that the others stay dense.
        beside: attentions that belong to no tower.
    """

    facts: Facts
    attentions: tuple[Attention, ...]
    space: TokenSpace
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    cls: int | None
    restorable: frozenset[str]
    readers: tuple[int, ...] = ()
    returned: bool = False
    tower: str = ""
    others: tuple[Analysis, ...] = ()
    chosen: bool = False
    beside: tuple[Beside, ...] = ()

    @property
    def has_cls(self) -> bool:
        return self.cls is not None

    @property
    def open(self) -> bool:
        """Return whether tokens may leave it for good somewhere."""
        return any(s.legal for s in self.sites if not s.until)

    @property
    def shape(self) -> Shape:
        s = self.space
        return Shape(s.total, s.total - s.patches, s.patches, len(self.blocks))

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)


def analyse(
    graph: gs.Graph,
    *,
    prefix: int | None = None,
    tower: str | None = None,
    sized: Mapping[str, Origin] | None = None,
) -> Analysis:
    """Analyse a graph in normal form.

    Args:
        prefix: tokens at the front that are not patches, where the person knows better.
        tower: which tower to look at; None: that of most blocks, the first of equals.
        sized: stored numbers → the (tensor, axis, size) that they were computed from.

    Raises:
        ModelError: no transformer with a residual stream in it.
        UsageError: a prefix that cannot be, no tower of that name.
    """
    known = _Streams.of(graph, sized=sized)
    streams = known.streams
    if not known.attentions:
        raise ModelError(
            "no transformer found: nothing in it is an attention (softmax(Q·Kᵀ)·V)",
            hint="tcompile reduces the tokens of vision transformers",
        )
    axes = tower_axes(graph, known.facts, streams)
    if not axes:
        raise ModelError(
            _without_tower(known),
            hint="tcompile reduces encoders whose tokens are the patches of an image",
        )
    names = names_of(graph, streams, axes)
    if tower is not None and tower not in names:
        raise UsageError(
            f"no tower '{tower}'", where="--tower", hint=f"this model has: {', '.join(names)}"
        )
    first = 0 if tower is None else names.index(tower)
    order = list(dict.fromkeys(r.axis for r in streams))
    others = sorted((i for i in range(len(axes)) if i != first), key=lambda i: order.index(axes[i]))
    main = _of_axis(graph, known, axes[first], names[first], prefix, must=True)
    main = _where_tokens_may_leave(graph, known, main, prefix)
    rest = [
        _where_tokens_may_leave(
            graph, known, _of_axis(graph, known, axes[i], names[i], prefix), prefix
        )
        for i in others
    ]
    towers = [(a.space, a.blocks) for a in (main, *rest)]
    return replace(
        main,
        others=tuple(rest),
        chosen=tower is not None,
        beside=beside(graph, known.facts, known.attentions, towers),
    )


def _without_tower(known: _Streams) -> str:
    """The reason why no stream runs over tokens that can be followed."""
    lost = known.facts.lost
    for one in known.streams:
        nodes = [lost[root] for root in lost if root in ax.roots(one.axis)]
        if nodes:
            return f"cannot tell which axis of '{one.stream}' holds tokens: {nodes[0]}"
    for one in known.streams:
        parts = ax.pieces(one.axis)
        if sum(not p.fixed for p in parts) > 1:
            sizes = " + ".join(f"{p.size} {'fixed' if p.fixed else 'of an image'}" for p in parts)
            return (
                f"fixed tokens stand between those of images in '{one.stream}' ({sizes}), where "
                "they could not be told apart once tokens have left"
            )
    return (
        f"has {len(known.attentions)} attentions, but none is self-attention over one token "
        "axis around which a residual stream runs"
    )


def _where_tokens_may_leave(
    graph: gs.Graph, known: _Streams, main: Analysis, prefix: int | None
) -> Analysis:
    """The tower itself or, where no token may leave it since fixed ones join it later (learned
    queries) or it drops tokens itself, the blocks behind, which run over both or over the rest."""
    if main.open:
        return main
    for axis in token_axes(known.streams):
        later = None if axis == main.space.axis else token_space(known.streams, None, axis)
        if later is None:
            continue
        joined = set(main.space.pieces) < set(ax.pieces(axis))
        joined = joined and later.patches == main.space.patches
        if joined or _picked_from(known.facts, later, main.space):
            found = _of_axis(graph, known, axis, main.tower, prefix)
            if found.open:
                return found
    return main


def _picked_from(facts: Facts, later: TokenSpace, first: TokenSpace) -> bool:
    """Return whether the patches of one space are some of those of another, which the file picks
    or reorders."""
    patches = {d.root for d in first.pieces[first.patch].axis}
    own = ax.roots(later.pieces[later.patch].axis)
    return bool(own & facts.picked.keys() and facts.origins(own) & patches)


def analyse_axis(
    graph: gs.Graph,
    axis: Axis,
    tower: str,
    prefix: int | None,
    sites: Container[str],
    written: frozenset[str],
    sized: Mapping[str, Origin],
) -> Analysis:
    """Analyse one tower, known by its token axis, in a graph where others have lost tokens.

    Args:
        written: the nodes that were written for that.
        sites: the names of those that are to be judged.
        sized: as `analyse`.

    Raises:
        ModelError: nothing runs over this axis.
    """
    known = _Streams.of(graph, frozenset(ax.roots(axis)), written, sized)
    return _of_axis(graph, known, axis, tower, prefix, sites=sites)


def meeting(graph: gs.Graph, one: Analysis, other: Analysis) -> gs.Node | None:
    """The first node that the tokens of two towers come to together."""
    both = [
        effects(graph, a.facts, a.space, a.attentions, [a.blocks[0].stream_in]).node_stage
        for a in (one, other)
    ]
    return next((n for n in graph.nodes if all(n.name in stages for stages in both)), None)


@dataclass(frozen=True)
class _Streams:
    """The attentions of a graph, and the residual streams that they are added to."""

    facts: Facts
    attentions: tuple[Attention, ...]
    streams: list[Residual]

    @staticmethod
    def of(
        graph: gs.Graph,
        tokens: frozenset[ax.Root] = frozenset(),
        written: frozenset[str] = frozenset(),
        sized: Mapping[str, Origin] | None = None,
    ) -> _Streams:
        meant: dict[ax.Root, Axis] = {}
        for _ in range(_ROUNDS):
            facts = propagate(graph, tokens, written, meant)
            attentions = tuple(find_attention(graph, facts))
            streams = residuals(graph, facts, attentions)
            more = meanings(graph, facts, attentions, streams)
            if not more:
                break
            meant = composed(meant, more)
        facts.sized = sized or {}
        return _Streams(facts, attentions, streams)


def _of_axis(
    graph: gs.Graph,
    known: _Streams,
    axis: Axis,
    tower: str,
    prefix: int | None,
    *,
    must: bool = False,
    sites: Container[str] | None = None,
) -> Analysis:
    """Analyse one tower.

    Args:
        must: a prefix that is not possible is an error; otherwise the tower goes without.
        sites: see `find_sites`.
    """
    if known.facts.conflicts and not known.facts.preferred:
        # What the tokens are is known: what contradicts them may take their meaning.
        known = _Streams.of(graph, frozenset(ax.roots(axis)), sized=known.facts.sized)
    facts, attentions, streams = known.facts, known.attentions, known.streams
    proven = token_space(streams, None, axis)
    if proven is None or not any(r.axis == axis for r in streams):
        raise ModelError(f"no block runs over the tokens of '{tower}'")
    space = proven if prefix is None else token_space(streams, prefix, axis)
    if space is None and must:
        most = proven.prefix + proven.patches - 1
        raise UsageError(
            f"{prefix} tokens before the patches are not possible here",
            where="--prefix",
            hint=f"the analysis proves {proven.prefix}; more can be stated, up to {most}",
        )
    space = space or proven
    space = with_learned(space, attentions)
    whole = space.whole_patches
    if whole is not None:
        space = replace(space, grouping=find_grouping(graph, facts, whole))
        space = with_orders(space, facts)
    blocks = tuple(find_blocks(graph, facts, streams, space))
    restorable = _behind(graph, blocks[-1].stream_out)
    lineage, last = Lineage(graph), blocks[-1].stream_out
    if any(last in lineage.above(r.stream) for r in streams if r.axis != space.axis):
        restorable = frozenset()  # another stage of the encoder follows, with other tokens
    found = tuple(find_sites(graph, facts, space, attentions, blocks, restorable, sites))
    cls, returned = _find_cls(graph, facts, space, last)
    readers = _readers(graph, facts, space, last, cls)
    return Analysis(
        facts, attentions, space, blocks, found, cls, restorable, readers, returned, tower
    )


def _behind(graph: gs.Graph, last: str) -> frozenset[str]:
    """Nodes that the last block's output does not depend on."""
    tensors = tensors_of(graph)
    needed = ancestors(tensors[last]) | {last}
    return frozenset(n.name for n in graph.nodes if not any(o.name in needed for o in n.outputs))


def _find_cls(
    graph: gs.Graph, facts: Facts, space: TokenSpace, final: str
) -> tuple[int | None, bool]:
    """The fixed token that is read after the last block: by itself or with others, else as part of
    an output, which the second value says. The first before the patches, else the first after them.

    A model that only ever averages its patches (registers, or a CLS that nothing reads) has no CLS
    whose attention means anything.
    """
    for returned in (False, True):
        if space.prefix and _is_read(graph, facts, space, final, 0, returned):
            return 0, returned
        if space.suffix and _is_read(graph, facts, space, final, space.end, returned):
            return -space.suffix, returned
    return None, False


def _readers(
    graph: gs.Graph, facts: Facts, space: TokenSpace, final: str, cls: int | None
) -> tuple[int, ...]:
    """The tokens whose attention scores patches for the model: the one at `cls`, or those of its
    kind that one node takes from the others together (detection tokens)."""
    if cls is None:
        return ()
    piece = 0 if cls >= 0 else space.end
    whole = space.pieces[piece]
    below, count = {final}, 1
    for node in graph.nodes:
        if not any(t.name in below for t in node.inputs):
            continue
        below.update(t.name for t in node.outputs)
        axes = [axis for out in node.outputs for axis in facts.of(out)]
        if node.op in ("Slice", "Split", "Gather"):
            taken = [ax.pieces(axis)[0] for axis in axes if _starts(axis, space, piece)]
            count = max([count, *(min(p.size, whole.size) for p in taken if p.start == 0)])
    return tuple(range(cls, cls + count))


def _is_read(
    graph: gs.Graph, facts: Facts, space: TokenSpace, final: str, piece: int, returned: bool
) -> bool:
    """Return whether the first token of a piece is read after the last block.

    Args:
        returned: an output that holds all tokens counts as well.
    """
    below = {final}
    if returned and any(o.name == final for o in graph.outputs):
        return True
    outputs = {o.name for o in graph.outputs}
    first = sum(p.size for p in space.pieces[:piece])
    for node in graph.nodes:
        if not any(t.name in below for t in node.inputs):
            continue
        below.update(t.name for t in node.outputs)
        if returned and any(o.name in outputs and carries(facts, o, space) for o in node.outputs):
            return True
        if node.op == "Gather" and _picks(node, facts, space, first):
            return True
        if node.op in ("Slice", "Split") and any(
            _starts(axis, space, piece) for out in node.outputs for axis in facts.of(out)
        ):
            return True
        pooled = node.op.startswith("Reduce") and carries(facts, node.inputs[0], space)
        if pooled and not carries(facts, node.outputs[0], space):
            return True
    return False


def _starts(axis: Axis, space: TokenSpace, piece: int) -> bool:
    """Return whether the axis is the first tokens of a fixed piece, without any patch."""
    first = ax.pieces(axis)[0]
    whole = space.pieces[piece]
    return first.fixed and first.axis == whole.axis and first.start == 0 and axis != space.axis


def _picks(node: gs.Node, facts: Facts, space: TokenSpace, position: int) -> bool:
    axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
    if facts.of(node.inputs[0])[axis] != space.axis or not is_const(node.inputs[1]):
        return False
    return bool((value(node.inputs[1]).reshape(-1) % space.total == position).any())


def tower_batch(graph: gs.Graph, analysis: Analysis) -> int | str:
    """The batch of the stream whose tokens are reduced: other inputs may have their own."""
    stream = analysis.facts.axes[analysis.blocks[0].stream_in]
    found = [d.size for axis in stream for d in axis if d.root.kind == "batch"]
    if found:
        return int_to_dim(prod(found))
    first = batch_dim(graph)  # a literal batch of 1 has no digit to be known by
    return 1 if is_free(first) else first
