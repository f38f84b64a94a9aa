"""What `tcompile inspect` knows of a model: its transformer, and where tokens may leave.

`inspection_page` prints it; `to_json` gives all of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.effects import locate
from tcompile.analysis.flops import block_flops, graph_flops
from tcompile.analysis.model import Analysis, meeting
from tcompile.analysis.sites import Site, Verdict
from tcompile.analysis.structure import Block, TokenSpace, ancestors
from tcompile.core.graph import attr, batch_dim
from tcompile.core.site import SiteName
from tcompile.report.inspection_sides import SideInfo, find_sides


@dataclass(frozen=True)
class PartInfo:
    """Consecutive tokens: patches, or fixed ones, which do not depend on the image.

    `source` is the tensor that fixed tokens come from.
    """

    kind: str
    start: int
    tokens: int
    source: str


@dataclass(frozen=True)
class GroupInfo:
    """Groups of patches that `node` joins: `sides` of a group, and how many groups there are."""

    members: int
    sides: tuple[int, ...]
    groups: int
    node: str


@dataclass(frozen=True)
class BlockInfo:
    """One block.

    `attention` is how it is spelled, `window` the sides of what one query sees (empty: every
    token; in a segment, its tokens), `parallel` whether attention and MLP stand side by side.
    `stream_in`, `after_attention` and `stream_out` name the residual stream. FLOPs are for one
    image.
    """

    block: int
    heads: int
    attention: str
    node: str
    attentions: int
    window: tuple[int, ...]
    parallel: bool
    stream_in: str
    after_attention: str
    stream_out: str
    flops: int


@dataclass(frozen=True)
class OutputInfo:
    """What an output holds, in words: all tokens, patches, groups, a grid, or no tokens.

    `after` is the last block that it depends on; None: on none.
    """

    output: str
    shape: tuple[int | str, ...]
    holds: str
    after: int | None


@dataclass(frozen=True)
class SiteInfo:
    """A point where tokens may leave, or around which they may pass a block.

    Attributes:
        granularity, restored_granularity: so many tokens leave together (whole groups, and as many
            in each segment), with the outputs reduced and restored.
        legal, merge_legal: for dropping and for merging, outputs reduced.
        reason: why not; empty where tokens may leave.
        reduced, restored: why not, for any reducer, for merging and for fusing, with the outputs
            reduced and with every token given back.
    """

    site: SiteName
    block: int
    tensor: str
    granularity: int
    restored_granularity: int
    legal: bool
    merge_legal: bool
    reason: str
    reduced: Verdict
    restored: Verdict


@dataclass(frozen=True)
class TowerInfo:
    """One of the encoders, or of the passes of one, that run over tokens of their own.

    `reduced` says whether tokens leave it unless another is chosen, `follows` whether it has the
    shape of the first one and so follows the same schedule as it is. `legal` names the sites where
    its tokens may leave, `reason` says why there is none. `meets` is the first node that its tokens
    come to together with those of the first tower; empty where they never do.
    """

    tower: str
    tokens: int
    prefix: int
    suffix: int
    patches: int
    grid: tuple[int, ...]
    cls: int | None
    blocks: int
    stream_in: str
    stream_out: str
    reduced: bool
    follows: bool
    legal: tuple[str, ...]
    reason: str
    meets: str = ""


@dataclass(frozen=True)
class BesideInfo:
    """Attentions that belong to no tower and stay dense: `attentions` of them, from `queries` to
    `keys`, the first at `node`, made from `inputs`."""

    attentions: int
    queries: int
    keys: int
    node: str
    inputs: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Inspection:
    """The structure of a model, and of its first tower or the one that was chosen.

    Attributes:
        tower: whose tokens, blocks and sites these are.
        towers: all towers, this one first.
        beside: attentions of no tower.
        read: the tokens whose attention `cls` scores read: (first, last), counted from the front;
            None where the model reads none.
        returned: whether that token is only part of an output that holds all tokens.
        tokens: of all kinds; `prefix` stand before the patches, `suffix` after them.
        cls: position of the token that the model reads by itself, -1 the last one; None: it reads
            none.
        segments: parts of equal size (frames, windows) that some attention sees apart.
        grid: the sides of the patches; one number where they never were a grid.
        grouping: the groups in which patches leave.
        flops: for one image.
    """

    model: str
    opset: int
    batch: int | str
    inputs: dict[str, list[int | str]]
    outputs: tuple[OutputInfo, ...]
    tokens: int
    prefix: int
    suffix: int
    patches: int
    parts: tuple[PartInfo, ...]
    segments: int
    cls: int | None
    grid: tuple[int, ...]
    grouping: GroupInfo | None
    attention_layers: int
    flops: int
    blocks: tuple[BlockInfo, ...]
    sides: tuple[SideInfo, ...]
    sites: tuple[SiteInfo, ...]
    tower: str = ""
    towers: tuple[TowerInfo, ...] = ()
    beside: tuple[BesideInfo, ...] = ()
    read: tuple[int, int] | None = None
    returned: bool = False

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for people, on a page."""
        from tcompile.report.inspection_page import page

        return page(self)


def describe(name: str, graph: gs.Graph, analysis: Analysis) -> Inspection:
    """Collect what is known of a normalised, analysed graph."""
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
    )


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
        )
        for b, cost in zip(analysis.blocks, flops, strict=True)
    ]


def _heads(block: Block, graph: gs.Graph, analysis: Analysis) -> int:
    """Heads; windows of a windowed block are none."""
    core = block.attention
    if core.form == "op" or not block.window:
        return core.heads
    axes = analysis.facts.of(graph.tensors()[core.q])[:-2]
    return prod(d.size for axis in axes for d in axis if d.root.kind == "weak")


def _segment(block: Block, space: TokenSpace) -> tuple[int, ...]:
    """What a query sees of its own segment; empty where it sees every token."""
    seen = ax.size(block.attention.columns)
    return (seen,) if block.over_tokens and seen < space.total else ()


def _spelling(node: gs.Node, core: Attention, nodes: dict[str, gs.Node]) -> str:
    """`Attention`, or `softmax`, with what stands between Q·Kᵀ and it."""
    if core.form == "op":
        mask = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        causal = ", causal" if attr(node, "is_causal", 0) else ""
        return "Attention" + (", mask" if mask else "") + causal
    ops = {nodes[n].op for n in core.chain}
    kinds = (["scale"] if ops & {"Mul", "Div"} else []) + (
        ["bias or mask"] if ops & {"Add", "Where"} else []
    )
    return ", ".join(["softmax", *kinds])


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
    """What a tensor has along its token axes, in words."""
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
        return "positions that are no tokens" if strange else "no token axis"
    run, size = runs[0].run, len(space.pieces)
    assert run is not None
    patches = (space.patch, space.end)
    if runs[0].part == "groups":
        what = "one row for each group of patches"
    elif not run.patches(space):
        what = "fixed tokens only"
    elif run.first == 0 and run.last == size:
        what = "all tokens"
    else:
        what = (
            "patches only" if (run.first, run.last) == patches else "patches and some fixed tokens"
        )
    grid = any(d.part == "rest" for d in runs)
    return f"{what}, as a grid" if grid else what
