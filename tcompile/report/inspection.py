"""Inspecting a model: its transformer, and where tokens may leave.

`Inspection.to_text` prints it on a page; `to_json` gives all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Side
from tcompile.analysis.flops import block_flops, graph_flops
from tcompile.analysis.model import Analysis, meeting
from tcompile.analysis.outcomes import Paths
from tcompile.analysis.sites import Site
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.structure import Block, ancestors
from tcompile.analysis.token_dims import locate
from tcompile.core.graph import attr, batch_dim, is_const, nbytes, value
from tcompile.report.inspection_info import (
    BesideInfo,
    BlockInfo,
    GroupInfo,
    OutputInfo,
    PartInfo,
    SideInfo,
    SiteInfo,
    TowerInfo,
)
from tcompile.report.inspection_page import Inspection


def describe(
    name: str, graph: gs.Graph, analysis: Analysis, notes: Sequence[str] = ()
) -> Inspection:
    """Collect what is known of a normalised, analysed graph.

    Args:
        notes: what a person should know of how the file was read.
    """
    space = analysis.space
    return Inspection(
        model=name,
        opset=graph.opset,
        batch=batch_dim(graph),
        inputs={t.name: list(t.shape) for t in graph.inputs},
        outputs=tuple(
            OutputInfo(t.name, tuple(t.shape), _holds(t, analysis), _after(t, analysis))
            for t in graph.outputs
        ),
        tokens=space.total,
        prefix=space.prefix,
        suffix=space.suffix,
        patches=space.patches,
        parts=tuple(_parts(space)),
        segments=space.segments,
        cls=analysis.cls,
        grid=space.grid,
        grouping=_grouping(analysis),
        attention_layers=len(analysis.attentions),
        flops=graph_flops(graph),
        blocks=tuple(_blocks(graph, analysis)),
        sides=tuple(find_sides(graph, analysis)),
        sites=tuple(_site(s) for s in analysis.sites),
        tower=analysis.tower,
        towers=tuple(_tower(a, analysis, graph) for a in (analysis, *analysis.others)),
        beside=tuple(
            BesideInfo(b.count, b.queries, b.keys, b.node, b.inputs, str(b))
            for b in analysis.beside
        ),
        read=_read(analysis),
        returned=analysis.returned,
        notes=(*notes, *_sets(analysis.space), *_picked(analysis)),
    )


def _sets(space: TokenSpace) -> list[str]:
    """The sets of tokens that were concatenated to one, if they were."""
    (first, *_) = space.pieces[space.patch].axis or (None,)
    union = first.root.union if first is not None else ()
    sizes = " + ".join(str(part.size) for part in union)
    return [f"the patches are {len(union)} sets in one stream: {sizes}"] if union else []


def _picked(analysis: Analysis) -> list[str]:
    """The nodes of the file that pick the patches which the blocks run over."""
    space, picked = analysis.space, analysis.facts.picked
    pieces = space.pieces[space.patch : space.end]
    origins = analysis.facts.origins({r for p in pieces for r in ax.roots(p.axis)})
    return [
        f"the file {'drops' if count < of else 'orders'} tokens itself: {node} gives {count} of "
        f"{of}; the blocks below are those behind it"
        for root, (node, count, of) in picked.items()
        if root in origins
    ]


def _read(analysis: Analysis) -> tuple[int, int] | None:
    places = [p % analysis.space.total for p in analysis.readers]
    return (places[0], places[-1]) if places else None


def _meets(tower: Analysis, first: Analysis, graph: gs.Graph) -> str:
    if tower is first:
        return ""
    node = meeting(graph, tower, first)
    return "" if node is None else f"{node.op} '{node.name}'"


def _tower(tower: Analysis, first: Analysis, graph: gs.Graph) -> TowerInfo:
    space = tower.space
    sites = [s for s in tower.sites if not s.until]
    legal = tuple(s.name for s in sites if s.legal)
    return TowerInfo(
        tower.tower,
        space.total,
        space.prefix,
        space.suffix,
        space.patches,
        space.grid,
        tower.cls,
        len(tower.blocks),
        tower.blocks[0].stream_in,
        tower.blocks[-1].stream_out,
        tower is first or (bool(legal) and not first.chosen),
        tower.shape == first.shape,
        legal,
        "" if legal else sites[0].reason,
        _meets(tower, first, graph),
    )


def _parts(space: TokenSpace) -> list[PartInfo]:
    found: list[PartInfo] = []
    start = 0
    for i, piece in enumerate(space.pieces):
        kind, source = "patches", ""
        if not space.patch <= i < space.end:
            kind = "fixed" if piece.fixed else "stated by hand"
            # The root of a fixed piece is called after the tensor and its axis.
            source = piece.axis[0].root.name.rpartition("/")[0] if piece.fixed else ""
        found.append(PartInfo(kind, start, piece.size, source))
        start += piece.size
    return found


def _grouping(analysis: Analysis) -> GroupInfo | None:
    space, groups = analysis.space, analysis.space.grouping
    # Windows group tokens too, but no token ever leaves before them.
    bind = any(
        s.step(mode) > space.segments and not s.verdict(mode).reason
        for s in analysis.sites
        for mode in ("reduced", "restored")
    )
    if groups is None or not bind:
        return None
    return GroupInfo(groups.members, groups.sides, space.patches // groups.members, groups.node)


def _blocks(graph: gs.Graph, analysis: Analysis) -> list[BlockInfo]:
    nodes = {n.name: n for n in graph.nodes}
    flops = block_flops(graph, analysis.blocks)
    return [
        BlockInfo(
            block=b.index,
            heads=_heads(b, graph, analysis),
            attention=_spelling(nodes[b.attention.node], b.attention, nodes),
            node=b.attention.node,
            attentions=len(b.attentions),
            window=b.window or _segment(b, analysis.space),
            parallel=b.parallel,
            stream_in=b.stream_in,
            after_attention=b.after_attention,
            stream_out=b.stream_out,
            flops=cost,
            unusual=tuple(dict.fromkeys(w for a in b.attentions for w in a.unusual)),
            unread=b.unread,
        )
        for b, cost in zip(analysis.blocks, flops, strict=True)
    ]


def _heads(block: Block, graph: gs.Graph, analysis: Analysis) -> int:
    """Heads; windows of a windowed block are none."""
    core = block.attention
    if core.form == "op" or not block.window:
        return core.heads
    axes = analysis.facts.of(graph.tensors()[core.q])[:-2]
    return prod(d.size for axis in axes for d in axis if d.root.kind == "untracked")


def _segment(block: Block, space: TokenSpace) -> tuple[int, ...]:
    """The tokens of its own segment that a query sees; empty where it sees every token."""
    seen = ax.size(block.attention.columns)
    return (seen,) if block.over_tokens and seen < space.total else ()


def _spelling(node: gs.Node, core: Attention, nodes: dict[str, gs.Node]) -> str:
    """`Attention`, or `softmax`, with what stands between Q·Kᵀ and it."""
    if core.form == "op":
        mask = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        causal = ", causal" if attr(node, "is_causal", 0) else ""
        return "Attention" + (", mask" if mask else "") + causal
    if core.form == "sum":
        return ", ".join(core.unusual)
    ops = {nodes[n].op for n in core.chain}
    kinds = (["scale"] if ops & {"Mul", "Div"} else []) + (
        ["bias or mask"] if ops & {"Add", "Where"} else []
    )
    return ", ".join(["softmax", *kinds, *core.unusual])


def _site(site: Site) -> SiteInfo:
    return SiteInfo(
        site.name,
        site.block,
        site.tensor,
        site.granularity,
        site.restored_granularity,
        site.legal,
        not site.reduced.merge,
        site.reason,
        site.reduced,
        site.restored,
    )


def _after(tensor: gs.Tensor, analysis: Analysis) -> int | None:
    """The last block that a tensor depends on."""
    above = ancestors(tensor) | {tensor.name}
    return max((b.index for b in analysis.blocks if b.stream_out in above), default=None)


def _holds(tensor: gs.Tensor, analysis: Analysis) -> str:
    """The tokens that a tensor holds, in words."""
    space, facts = analysis.space, analysis.facts
    if tensor.name in facts.opaque:
        return f"unknown: {facts.opaque[tensor.name]}"
    axes = facts.of(tensor)
    dims = locate(axes, space)
    if None in dims:
        return "tokens, rearranged"
    runs = [d for d in dims if d is not None and d.run is not None]
    if not runs:
        strange = any(d.root.kind == "data" for axis in axes for d in axis)
        return "positions that are not tokens" if strange else "no token axis"
    run, size = runs[0].run, len(space.pieces)
    assert run is not None
    patches = (space.patch, space.end)
    if runs[0].part == "groups":
        what = "one row for each group of patches"
    elif not run.has_patches(space):
        what = "fixed tokens only"
    elif run.first == 0 and run.last == size:
        what = "all tokens"
    else:
        what = (
            "patches only" if (run.first, run.last) == patches else "patches and some fixed tokens"
        )
    grid = any(d.part == "rest" for d in runs)
    return f"{what}, as a grid" if grid else what


#: A logit this low is a mask's.
_MASKED = -1e4
_LARGEST = 1 << 26
_LOGICAL = ("And", "Or", "Xor", "Not", "Where", "Equal", "Less", "Greater")


def find_sides(graph: gs.Graph, analysis: Analysis) -> list[SideInfo]:
    """The side inputs of all blocks, in execution order.

    They are what would have to be gathered if tokens left before the first block.
    """
    stream = analysis.blocks[0].stream_in
    walk = effects(
        graph,
        analysis.facts,
        analysis.space,
        analysis.attentions,
        [stream],
        restorable=analysis.restorable,
    )
    homes, paths = dict[str, int](), Paths(graph)
    for block in analysis.blocks:
        for name in paths.between(block.stream_in, block.stream_out):
            homes.setdefault(name, block.index)
    logits = {name for a in analysis.attentions for name in a.chain}
    found: dict[tuple[str, str], SideInfo] = {}
    for node in graph.nodes:
        for edit in walk.edits.get(node.name, []):
            if not isinstance(edit, Side):
                continue
            tensor = node.inputs[edit.operand]
            kind = _kind(node, edit, tensor, logits)
            axes = tuple(a.axis for a in edit.axes)
            old = found.get((kind, tensor.name))
            blocks = set(old.blocks if old else ()) | {homes[n] for n in (node.name,) if n in homes}
            found[kind, tensor.name] = SideInfo(
                kind,
                tensor.name,
                tuple(tensor.shape),
                axes,
                edit.live,
                tuple(sorted(blocks)),
                (*(old.nodes if old else ()), node.name),
            )
    return list(found.values())


def _kind(node: gs.Node, edit: Side, tensor: gs.Tensor, logits: set[str]) -> str:
    if edit.fill is not None:
        return "rotary cosines" if edit.fill else "rotary sines"
    if node.op in _LOGICAL or np.dtype(tensor.dtype) == np.bool_:
        return "mask"
    if node.name in logits or node.op == "Attention":
        if edit.live:
            return "mask or bias"
        return "mask" if _masks(tensor) else "position bias"
    if node.op in ("Add", "Sub"):
        return "all tokens of an earlier layer" if edit.live else "position embedding"
    return "tokens computed elsewhere" if edit.live else "table"


def _masks(tensor: gs.Tensor) -> bool:
    """Return whether a stored tensor of logits forbids some pairs."""
    if not is_const(tensor) or nbytes(tensor) > _LARGEST:
        return False
    return bool(np.min(value(tensor), initial=0) <= _MASKED)
