"""Following cuts downstream: every node is visited once, in execution order.

What an op needs is its row in `analysis.ops`; here is only what holds for every op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.count_state import Counts
from tcompile.analysis.counts import find_counts
from tcompile.analysis.effect_joins import joins
from tcompile.analysis.effect_rules import NOT_KNOWN, picks
from tcompile.analysis.effect_state import BarrierError, Walk
from tcompile.analysis.effects import (
    Barrier,
    Edit,
    Effects,
    Pooling,
    Recount,
    ReductionPoint,
    Region,
    Regroup,
    Restore,
)
from tcompile.analysis.facts import Facts
from tcompile.analysis.ops import mixed_axes, op_of
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Dims, Part, is_rest
from tcompile.analysis.transfer_grid import tiled_pool
from tcompile.core.graph import is_const, producer
from tcompile.core.op_traits import REARRANGES, Trait

#: Ops that always rearrange what a grid of tokens holds, even where both sides can be located.
_REGROUPING = ("SpaceToDepth", "DepthToSpace", "AveragePool", "MaxPool")
_POOLS: Mapping[str, Pooling] = {"AveragePool": "mean", "MaxPool": "max"}


def effects(
    graph: gs.Graph,
    facts: Facts,
    space: TokenSpace,
    attentions: Sequence[Attention],
    cuts: Sequence[str | ReductionPoint],
    *,
    restorable: frozenset[str] = frozenset(),
    counts: Counts | None = None,
    known: dict[str, Dims] | None = None,
) -> Effects:
    """Follow the cuts (tensors, in execution order) to the outputs.

    Args:
        restorable: nodes that may get every token back where they could not do with fewer.
        counts: what grows with the number of tokens, where it is known already.
        known: dims of tensors, shared between walks over the same graph and space.
    """
    counts = find_counts(graph, facts, space) if counts is None else counts
    by_node = {a.node: a for a in attentions}
    walk = begin(facts, space, by_node, counts, cuts, restorable=restorable, known=known)
    for node in graph.nodes[_first(graph, walk.cuts) :]:
        visit(walk, node)
    walk.result.barriers += [b for o in graph.outputs if (b := refused_output(walk, o)) is not None]
    return walk.result


def begin(
    facts: Facts,
    space: TokenSpace,
    attentions: Mapping[str, Attention],
    counts: Counts,
    cuts: Sequence[str | ReductionPoint],
    *,
    restorable: frozenset[str] = frozenset(),
    known: dict[str, Dims] | None = None,
) -> Walk:
    """Return a walk that has visited no node yet. Arguments as `effects`.

    Args:
        attentions: by the name of their softmax or `Attention` node.
        known: dims of tensors, shared between walks over the same graph and space.
        counts: what grows with the number of tokens.
    """
    made = [c if isinstance(c, ReductionPoint) else ReductionPoint(c) for c in cuts]
    return Walk(
        facts,
        space,
        attentions,
        {} if known is None else known,
        counts,
        points=tuple(made),
        cuts={c.tensor: (i + 1, c) for i, c in enumerate(made)},
        ends={c.until: i + 1 for i, c in enumerate(made) if c.until},
        backs=frozenset(i + 1 for i, c in enumerate(made) if c.back),
        restorable=restorable,
    )


def visit(walk: Walk, node: gs.Node) -> None:
    """Take the walk past one node."""
    stage = _visit(walk, node)
    if walk.result.stage and any(isinstance(a, gs.Graph) for a in node.attrs.values()):
        walk.result.barriers.append(Barrier(node.name, node.op, "holds a sub-graph"))
    if stage:
        walk.result.node_stage[node.name] = stage
    for out in node.outputs:
        _pass_cut(walk, node, out, stage)


def _first(graph: gs.Graph, cuts: Mapping[str, object]) -> int:
    """Return the place of the node that writes the first cut; 0 where an input is cut."""
    writes = (i for i, n in enumerate(graph.nodes) if any(o.name in cuts for o in n.outputs))
    return next(writes, 0)


# ---- cuts ----------------------------------------------------------------------------------------


def _pass_cut(walk: Walk, node: gs.Node, out: gs.Tensor, stage: int) -> None:
    """Begin or end a stage at a tensor just written."""
    result = walk.result
    if out.name in walk.ends:
        result.stage.pop(out.name, None)
        walk.measured.pop(out.name, None)
    if out.name not in walk.cuts:
        return
    number, where = walk.cuts[out.name]
    before = 0 if number - 1 in walk.backs else number - 1
    if where.region == frozenset() and stage != before:
        why = "does not follow the reduction before it"
        result.barriers.append(Barrier(node.name, node.op, why))
    result.cuts[out.name] = walk.all_dims(out)
    if where.back:
        result.stage.pop(out.name, None)
        walk.measured.pop(out.name, None)
        return
    result.stage[out.name] = number
    if not where.region:
        result.dims[out.name] = result.cuts[out.name]


def _bypass_around(walk: Walk, tensor: str) -> ReductionPoint | None:
    """The bypass that a tensor lies inside of."""
    inside = _bypassed(walk, walk.result.stage.get(tensor, 0))
    return None if inside is None or inside.tensor == tensor else inside


def _joined_images(walk: Walk, place: int, dim: Dim | None) -> bool:
    """Return whether a dim behind the first holds tokens of images that have indices of their own.

    Along the first, the index reads as the rows do: image by image.
    """
    return dim is not None and place > 0 and dim.batch and walk.has_patches(dim)


def refused_output(walk: Walk, out: gs.Tensor) -> Barrier | None:
    """Return why an output cannot be given; None where it can."""
    cut = walk.cuts.get(out.name)
    if cut is not None and cut[1].region:
        return None  # outside of the block that tokens bypass, the stream is whole
    why, stage = "", walk.result.stage.get(out.name, 0)
    if _bypass_around(walk, out.name) is not None:
        why = "is written where tokens are away for a while"
    elif out.name in walk.regions:
        if not _restore_region(walk, walk.regions[out.name], stage):
            why = "splits or permutes the token axis"
    elif stage and any(_joined_images(walk, i, d) for i, d in enumerate(walk.dims(out))):
        why = "gives the tokens of several images along one axis"
    elif stage and any(d is not None and any(d.others) for d in walk.dims(out)):
        why = "gives tokens with learned keys or sinks beside them"
    elif not walk.restorable and stage and any(map(is_rest, walk.result.dims[out.name])):
        why = "gives a grid, which fewer tokens do not fill"
    if not why:
        return None
    maker = producer(out)
    name, op = (maker.name, maker.op) if maker is not None else (str(out.name), "input")
    return Barrier(name, op, why)


# ---- one node ------------------------------------------------------------------------------------


def _visit(walk: Walk, node: gs.Node) -> int:
    """Record the node's edits or barrier; returns the stage of its inputs."""
    walk.node = node
    inputs = [t for t in node.inputs if not t.is_empty()]
    stage = max((walk.stage(t) for t in inputs), default=0)
    edits: list[Edit] = []
    try:
        if stage == 0:
            _check_tainted(walk, node)
        else:
            _check_leaves(walk, node, inputs)
            _check_neighbours(walk, node)
            edits = _edits(walk, node, stage)
        edits = edits + _counted(walk, node, stage)
    except BarrierError as error:
        if _restore(walk, node, stage):
            return 0
        walk.result.barriers.append(Barrier(node.name, node.op, str(error)))
        edits = []
    if edits:
        walk.result.edits[node.name] = edits
    for out in node.outputs if stage else []:
        if out.name in walk.regions:
            walk.result.stage[out.name] = stage
            continue
        dims = walk.result.dims[out.name] = walk.all_dims(out)
        if not out.is_empty() and any(map(walk.has_patches, dims)):
            walk.result.stage[out.name] = stage
            if any(d.part == "groups" for d in dims):
                walk.result.grouped = walk.result.grouped or node.name
    return stage


def _counted(walk: Walk, node: gs.Node, stage: int) -> list[Edit]:
    """Edits of what follows the number of tokens: literals, and masks that are counted."""
    counts = walk.counts
    of = [walk.measured.get(t.name, 0) for t in node.inputs]
    taken = max([stage, *of], default=0)
    if taken == 0:
        return []
    for out in node.outputs:
        walk.measured[out.name] = taken
    edits: list[Edit] = []
    for i, (tensor, one) in enumerate(zip(node.inputs, of, strict=True)):
        if is_const(tensor) or one == taken:
            continue
        if walk.stage(tensor) == taken:
            continue  # tokens, of which something was summed before
        if tensor.name in counts.beside:
            edits.append(Recount(i, taken))
            taker = counts.beside[tensor.name]
            if taker:
                walk.no_merge(node, f"reads what '{taker}' makes of all tokens of a mask")
        elif counts.of(tensor).degree > 0:
            walk.no_drop(node, "joins sums over more and over fewer tokens")
    unresolved = counts.unresolved.get(node.name)
    if unresolved and stage:
        why = f"sums over tokens, and {unresolved}, so that fewer tokens change its scale"
        if node.name in _restorable(walk, stage):
            raise BarrierError(why)
        walk.no_drop(node, why)
    if node.name in counts.sized:
        walk.no_drop(node, "reads a number that was computed from how many tokens there are")
    if node.name in counts.doubts:
        walk.no_drop(node, counts.doubts[node.name])
    if node.name in counts.rescales:
        edits.append(replace(counts.rescales[node.name], stage=taken))
    return edits


def _check_neighbours(walk: Walk, node: gs.Node) -> None:
    """At one place along the tokens, each image of the batch has another one."""
    op = op_of(node)
    if op is None or op.effect is picks or Trait.READS_SHAPE in op.traits:
        return
    for operand, tensor in enumerate(node.inputs):
        if tensor.is_empty() or is_const(tensor) or not walk.stage(tensor):
            continue
        axes = walk.facts.of(tensor)
        mixed = mixed_axes(node, operand)
        if not any(ax.has_batch(axes[i]) for i in mixed):
            continue
        tokens = {i for i, d in enumerate(walk.dims(tensor)) if walk.has_patches(d)}
        if node.op.startswith("Reduce") and tokens <= set(mixed):
            continue  # of all tokens at once, in whatever order
        raise BarrierError("works along the batch, and at one place each image has another token")


def _check_leaves(walk: Walk, node: gs.Node, inputs: Iterable[gs.Tensor]) -> None:
    for tensor in inputs:
        cut = _bypass_around(walk, tensor.name)
        if cut is not None and node.name not in cut.region:
            raise BarrierError(f"reads '{tensor.name}' from inside the block")


def _edits(walk: Walk, node: gs.Node, stage: int) -> list[Edit]:
    region = _entered(walk, node)
    located = all(None not in walk.dims(out) for out in node.outputs)
    view = node.op in REARRANGES or tiled_pool(node) is not None
    parts = [_parts(walk, t) for t in (*node.inputs[:1], *node.outputs[:1])]
    regroups = bool(parts[0]) and (node.op in _REGROUPING or parts[0] != parts[1])
    if view and (region is not None or not located or regroups):
        return _in_region(walk, node, region)
    if region is not None:
        raise BarrierError(_cut_text(walk, node.inputs[0]))
    op = op_of(node)
    if op is None:
        raise BarrierError(NOT_KNOWN)
    for out in node.outputs:
        if out.name in walk.facts.opaque:
            raise BarrierError("loses track of the token axis")
        if None in walk.dims(out):
            if node.op in ("Slice", "Split", "Gather"):
                raise BarrierError("takes particular patch tokens")
            raise BarrierError(_cut_text(walk, out))
    edits = joins(walk, node, stage) + op.effect(walk, node)
    if node.name in walk.facts.conflicts:
        raise BarrierError(walk.facts.conflicts[node.name])
    return edits


def _parts(walk: Walk, tensor: gs.Tensor) -> set[Part]:
    """The parts of the token space that the dims of a tensor hold: tokens, or groups of them."""
    return {d.part for d in walk.dims(tensor) if d is not None and walk.has_patches(d)} - {"rest"}


def _cut_text(walk: Walk, tensor: gs.Tensor) -> str:
    pairs = zip(walk.facts.of(tensor), walk.dims(tensor), strict=True)
    lost = [ax.show(a) for a, d in pairs if d is None]
    return f"splits or permutes the token axis: {', '.join(lost)}"


# ---- regions of views ----------------------------------------------------------------------------


def _entered(walk: Walk, node: gs.Node) -> Region | None:
    """The region that the node reads from."""
    return next((walk.regions[t.name] for t in node.inputs if t.name in walk.regions), None)


def _in_region(walk: Walk, node: gs.Node, region: Region | None) -> list[Edit]:
    """A view whose result cannot follow the tokens yet, or at last does again."""
    out = node.outputs[0]
    if out.name in walk.facts.opaque:
        raise BarrierError("loses track of the token axis")
    pool = _POOLS.get(node.op, "")
    if region is None:
        region = Region(node.inputs[0].name, node.name, pool)
    elif pool:
        if region.pool:
            raise BarrierError("pools tokens twice")
        region = replace(region, pool=pool)
    if None in walk.dims(out):
        walk.regions[out.name] = region
        return []
    if walk.space.grouping is None:
        raise BarrierError("takes tokens out of their order and puts them back")
    return [Regroup(region.source, region.pool)]


# ---- getting every token back --------------------------------------------------------------------


def _restore(walk: Walk, node: gs.Node, stage: int) -> bool:
    """Give the node (or the head of the region it ends) every token back, where allowed."""
    read = [t for t in node.inputs if not t.is_empty()]
    if stage == 0 or any(any(d.others) for t in read for d in walk.dims(t) if d):
        return False
    bypassed = _bypassed(walk, stage)
    if bypassed and any(o.name in walk.facts.opaque for o in node.outputs):
        return False
    region = _entered(walk, node)
    if region is not None:
        if not _restore_region(walk, region, stage):
            return False
    else:
        if node.name not in _restorable(walk, stage):
            return False
        tensors = enumerate(node.inputs)
        walk.result.edits[node.name] = [
            Restore(i) for i, t in tensors if not t.is_empty() and walk.stage(t) == stage
        ]
        walk.result.restored[node.name] = stage
    if bypassed:
        try:
            walk.tainted.update(t.name for t in node.inputs if walk.stage(t) == stage)
            _check_tainted(walk, node)
        except BarrierError:
            return False
        walk.tainted.update(o.name for o in node.outputs)
    return True


def _restore_region(walk: Walk, region: Region, stage: int) -> bool:
    """Give the head of a region of views every token back, where allowed."""
    if region.head not in _restorable(walk, stage):
        return False
    walk.result.edits[region.head] = [Restore(0)]
    walk.result.restored[region.head] = stage
    for name in [n for n, r in walk.regions.items() if r.head == region.head]:
        del walk.regions[name]
        walk.result.stage.pop(name, None)
        if _bypassed(walk, stage):
            walk.tainted.add(name)
    return True


def _bypassed(walk: Walk, stage: int) -> ReductionPoint | None:
    """The cut of a stage that tokens bypass."""
    cut = walk.points[stage - 1] if stage else None
    return cut if cut is not None and cut.region else None


def _restorable(walk: Walk, stage: int) -> frozenset[str]:
    """The nodes that may get every token back."""
    inside = _bypassed(walk, stage)
    if inside is None:
        return walk.restorable
    return frozenset() if inside.merged else inside.region


def _check_tainted(walk: Walk, node: gs.Node) -> None:
    """Rows of tokens that were not computed may be moved, never mixed with others."""
    mine = [(i, t) for i, t in enumerate(node.inputs) if t.name in walk.tainted]
    if not mine:
        return
    orders = {d.order for _, t in mine for d in walk.dims(t) if d is not None and d.run is not None}
    if len(orders) > 1:
        raise BarrierError("joins tokens that bypass the block with others, in another order")
    roots = ax.roots(walk.space.axis)
    for operand, tensor in mine:
        axes = walk.facts.of(tensor)
        for axis in mixed_axes(node, operand):
            if any(d.root in roots for d in axes[axis]) or ax.has_batch(axes[axis]):
                raise BarrierError("mixes tokens that bypass the block with those in it")
    walk.tainted.update(o.name for o in node.outputs)
