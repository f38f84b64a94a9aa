"""Explaining one node by what the analysis knows of it: `tcompile inspect --why NODE`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import effects as fx
from tcompile.analysis.axes import Axis
from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Effects
from tcompile.analysis.model import Analysis
from tcompile.analysis.outcomes import Paths
from tcompile.analysis.sites import Site
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Run, locate
from tcompile.core.errors import UsageError, assert_never, short_names
from tcompile.core.graph import consumers, is_const, producer
from tcompile.core.site import SiteName
from tcompile.report.inspection_page import ranges


@dataclass(frozen=True)
class TensorFacts:
    """A tensor; `axes` says in words what each dim runs over, `opaque` which node lost track."""

    name: str
    shape: tuple[int | str, ...]
    axes: tuple[str, ...]
    live: bool
    stored: bool
    opaque: str


@dataclass(frozen=True)
class WalkFacts:
    """The effect on a node when tokens leave at a site: edits in words, or what forbids it."""

    site: SiteName
    outputs: str
    reached: bool
    edits: tuple[str, ...]
    barriers: tuple[str, ...]


@dataclass(frozen=True)
class NodeFacts:
    """All that is known of a node. `op` is `input` or `stored` for a tensor without a node.

    Attributes:
        place: where it lies, in words; `block` its block, if it lies in one.
        conflict: the two claims about an axis that contradict each other there.
        forbids: sites that are illegal because of it.
        readers: the nodes that read what it gives.
        tower: whose tokens, sites and blocks these are, where the model has several.
        site: whether tokens may leave at the site whose name was asked for, in words.
    """

    name: str
    op: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    block: int | None
    place: str
    conflict: str
    walks: tuple[WalkFacts, ...]
    forbids: tuple[SiteName, ...]
    readers: tuple[str, ...]
    tower: str = ""
    site: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for people."""
        lines = [self.site] if self.site else []
        lines.append(f"{self.op} '{self.name}', {self.place}")
        for what, tensors in (("reads", self.inputs), ("gives", self.outputs)):
            lines += [line for t in tensors for line in _tensor_lines(what, t)]
        if self.readers:
            shown = ", ".join(f"'{r}'" for r in self.readers[:8])
            lines.append(f"  read by {shown}" + (" …" if len(self.readers) > 8 else ""))
        if self.conflict:
            lines.append(f"  two claims about one axis: {self.conflict}")
        told: dict[tuple[SiteName, tuple[str, ...]], list[str]] = {}
        for walk in self.walks:
            told.setdefault((walk.site, (*walk.edits, *walk.barriers)), []).append(walk.outputs)
        for (site, texts), modes in told.items():
            do = "pass a block" if site.kind == "around" else "leave"
            lines.append(f"When tokens {do} at {site}, outputs {' or '.join(modes)}:")
            lines += [f"  {text}" for text in texts]
        if self.forbids:
            lines.append(f"It is why tokens may not leave at {ranges(self.forbids)}")
        return short_names("\n".join(lines))


def _tensor_lines(what: str, tensor: TensorFacts) -> list[str]:
    kind = "stored" if tensor.stored else "from the image" if tensor.live else "same for all images"
    lines = [f"  {what} '{tensor.name}' {list(tensor.shape)}, {kind}: {'; '.join(tensor.axes)}"]
    lines = [line.removesuffix(": ") for line in lines]
    return [*lines, f"    lost by {tensor.opaque}"] if tensor.opaque else lines


def explain(
    graph: gs.Graph, analysis: Analysis, name: str, folded: Iterable[str] = ()
) -> NodeFacts:
    """Collect what is known of the node of that name, or of the one that gives that tensor.

    The name of a site stands for the attention of its block (`attn:3`, `inside:3`), or for the node
    that gives the stream there: names of nodes differ between exporters, those of sites do not.

    Args:
        folded: names of the source file, to tell what went when it was brought into normal form.

    Raises:
        UsageError: nothing has that name; says which names come nearest.
    """
    node = next((n for n in graph.nodes if n.name == name), None)
    tensors = graph.tensors()
    if node is None and name in tensors:
        node = producer(tensors[name])
        if node is None:
            return _source(tensors[name], analysis)
    site = analysis.site(name) if node is None else None
    if site is not None:
        node = _node_at(graph, analysis, site)
    if node is None:
        raise _unknown(graph, name, folded)
    several, analysis = bool(analysis.others), _tower_of(graph, analysis, node)
    block, place = _place(graph, analysis, node)
    if several and block is not None:
        place += f" of tower '{analysis.tower}'"
    quoted = f"'{node.name}'"
    return NodeFacts(
        name=node.name,
        op=node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}.{node.op}",
        inputs=tuple(_tensor(t, analysis) for t in node.inputs if not t.is_empty()),
        outputs=tuple(_tensor(t, analysis) for t in node.outputs if not t.is_empty()),
        block=block,
        place=place,
        conflict=analysis.facts.conflicts.get(node.name, ""),
        walks=tuple(_walk(graph, analysis, node, s, mode) for s, mode in _sites(analysis, block)),
        forbids=tuple(s.name for s in analysis.sites if quoted in s.reason),
        readers=tuple(r.name for t in node.outputs for r, _ in consumers(t)),
        tower=analysis.tower if several else "",
        site="" if site is None else _site_words(site),
    )


def _node_at(graph: gs.Graph, analysis: Analysis, site: Site) -> gs.Node | None:
    if site.kind in ("attn", "inside"):
        name = analysis.blocks[site.block].attention.node
        return next((n for n in graph.nodes if n.name == name), None)
    return producer(graph.tensors()[site.until or site.tensor])


def _site_words(site: Site) -> str:
    if site.legal:
        return f"Tokens may leave at {site.name}"
    if not site.restored.reason:
        return f"Tokens may leave at {site.name} with --outputs restored only: {site.reason}"
    return f"Tokens may not leave at {site.name}: {site.reason}"


def _tower_of(graph: gs.Graph, analysis: Analysis, node: gs.Node) -> Analysis:
    """The tower in whose blocks a node lies; the first one where it lies in none's."""
    paths = Paths(graph)
    for tower in (analysis, *analysis.others):
        if node.name in paths.between(tower.blocks[0].stream_in, tower.blocks[-1].stream_out):
            return tower
    return analysis


def _source(tensor: gs.Tensor, analysis: Analysis) -> NodeFacts:
    """An input of the graph, or a stored tensor."""
    stored = is_const(tensor)
    place = "stored in the file" if stored else "an input of the model"
    return NodeFacts(
        tensor.name,
        "stored" if stored else "input",
        (),
        (_tensor(tensor, analysis),),
        None,
        place,
        "",
        (),
        (),
        tuple(r.name for r, _ in consumers(tensor)),
    )


def _unknown(graph: gs.Graph, name: str, folded: Iterable[str]) -> UsageError:
    """The error for a name that nothing has."""
    if name in set(folded):
        return UsageError(
            f"'{name}' is in the file, but was folded away when it was brought into normal form",
            where="--why",
        )
    names = [n.name for n in graph.nodes]
    names += [str(t) for t in graph.tensors()]
    near = difflib.get_close_matches(name, names, 3, 0.4)
    near += [n for n in names if name in n and n not in near][: 3 - len(near)]
    hint = f"nearest: {', '.join(near)}" if near else "`tcompile inspect --json` has names"
    hint += "; a site such as attn:0 is taken as well"
    return UsageError(f"no node or tensor '{name}'", where="--why", hint=hint)


# ---- where it lies -------------------------------------------------------------------------------


def _place(graph: gs.Graph, analysis: Analysis, node: gs.Node) -> tuple[int | None, str]:
    paths = Paths(graph)
    for block in analysis.blocks:
        if node.name in paths.between(block.stream_in, block.stream_out):
            if block.parallel:
                return block.index, f"in block {block.index}"
            early = paths.between(block.stream_in, block.after_attention)
            half = "attention" if node.name in early else "MLP"
            return block.index, f"in the {half} of block {block.index}"
    if node.name in analysis.restorable:
        return None, "behind the last block"
    if not any(analysis.facts.is_live(t) for t in node.inputs):
        return None, "computed from stored tensors only"
    order = {n.name: i for i, n in enumerate(graph.nodes)}
    first = producer(graph.tensors()[analysis.blocks[0].stream_in])
    if first is None or order[node.name] <= order[first.name]:
        return None, "before the first block"
    return None, "beside the blocks"


def _tensor(tensor: gs.Tensor, analysis: Analysis) -> TensorFacts:
    facts, space = analysis.facts, analysis.space
    axes = facts.of(tensor)
    words = tuple(axis_words(d, a, space) for d, a in zip(locate(axes, space), axes, strict=True))
    words = () if is_const(tensor) else words
    opaque = facts.opaque.get(tensor.name, "")
    return TensorFacts(
        tensor.name, tuple(tensor.shape), words, facts.is_live(tensor), is_const(tensor), opaque
    )


# ---- what a walk finds ---------------------------------------------------------------------------


def _sites(analysis: Analysis, block: int | None) -> list[tuple[Site, str]]:
    """The first legal site with reduced and with restored outputs, and around a block (the
    node's own where that may be); where no site is legal, the first of all."""
    leaving = [s for s in analysis.sites if not s.until]
    found: list[tuple[Site, str]] = []
    for mode in ("reduced", "restored"):
        first = next((s for s in leaving if not s.verdict(mode).reason), None)
        if first is None and mode == "reduced":
            first = next((s for s in leaving if s.reason), None)
        if first is not None:
            found.append((first, mode))
    around = [s for s in analysis.sites if s.kind == "around" and s.legal]
    around.sort(key=lambda s: s.block != block)
    return [*found, *((s, "reduced") for s in around[:1])]


def _walk(graph: gs.Graph, analysis: Analysis, node: gs.Node, site: Site, mode: str) -> WalkFacts:
    restorable = analysis.restorable if mode == "restored" else frozenset[str]()
    found = effects(
        graph,
        analysis.facts,
        analysis.space,
        analysis.attentions,
        [site.cut(Paths(graph))],
        restorable=restorable,
    )
    reached = bool(found.node_stage.get(node.name)) or node.name in found.restored
    barriers = _barriers(found, node)
    edits = tuple(edit_words(e, node, analysis.space) for e in found.edits.get(node.name, []))
    if not reached and not barriers:
        edits = ("nothing changes: it reads nothing that tokens have left",)
    elif not edits and not barriers:
        edits = ("it carries fewer tokens and needs no change",)
    return WalkFacts(site.name, mode, reached, edits, barriers)


def _barriers(found: Effects, node: gs.Node) -> tuple[str, ...]:
    kinds: Sequence[tuple[str, Any]] = (
        ("forbids it", found.barriers),
        ("forbids merging", found.merge_barriers),
        ("forbids fusing", found.fuse_barriers),
        ("forbids all but merging", found.drop_barriers),
    )
    return tuple(
        f"{what}: it {b.why}" for what, barriers in kinds for b in barriers if b.node == node.name
    )


def axis_words(dim: Dim | None, axis: Axis, space: TokenSpace) -> str:
    """The positions that a dim runs over: `all 197 tokens`, `batch`, `features`."""
    if dim is None:
        return f"cuts through the tokens: {ax.show(axis)}"
    if dim.part == "rest":
        return "the grid's other side"
    parts = ["batch"] if dim.batch else []
    if dim.run is not None:
        parts.append(_run(dim.run, space) if dim.part == "tokens" else "groups of patches")
        parts += [str(dim.factor)] if dim.factor > 1 else []
    elif ax.size(axis) > 1 and not dim.batch:
        untracked = all(d.root.kind == "untracked" for d in axis)
        parts.append("features" if untracked else ax.show(axis))
    elif dim.factor > 1:
        parts.append(str(dim.factor))
    return " × ".join(parts) or "1"


def _run(run: Run, space: TokenSpace) -> str:
    count = run.size(space, space.patches)
    if run.first == 0 and run.last == len(space.pieces):
        return f"all {count} tokens"
    if not run.has_patches(space):
        return f"{count} fixed tokens"
    alone = (run.first, run.last) == (space.patch, space.end)
    return f"{count} patches" if alone else f"{count} tokens, patches among them"


def edit_words(edit: fx.Edit, node: gs.Node, space: TokenSpace) -> str:
    """An edit in words: the one place that says how each is described."""
    match edit:
        case fx.SetShape(dims):
            return f"its target shape becomes [{', '.join(_target(d, space) for d in dims)}]"
        case fx.SetSlice(axis, whole, part, others):
            if others != (0, 0):
                return f"cuts off the {sum(others)} keys beside {_run(whole, space)}"
            return f"takes {_run(part, space)} of {_run(whole, space)} along axis {axis}"
        case fx.SetSplit(parts):
            names = [f"{p} others" if isinstance(p, int) else _run(p, space) for p in parts]
            return f"splits into {' | '.join(names)}"
        case fx.SetGather(whole, part, positions):
            what = _run(part, space) if part else f"positions {list(positions)}"
            return f"takes {what} of {_run(whole, space)}"
        case fx.Side(operand, places, _, fill):
            axes = ", ".join(str(a.axis) for a in places)
            fused = "" if fill is None else f"; a fused token reads {fill:g}"
            name = node.inputs[operand].name
            return f"the rows of '{name}' follow the tokens that stay, along axis {axes}{fused}"
        case fx.Pool(axis, run):
            return f"pools {_run(run, space)} along axis {axis}, weighed by size after merging"
        case fx.Bias():
            return "its keys are fewer; after merging, log size is added to its logits"
        case fx.Restore(operand):
            return f"gets every token of '{node.inputs[operand].name}' back before it reads it"
        case fx.Reorder(_, _, run):
            return f"puts those left of {_run(run, space)} in its own order"
        case fx.Trim(operand):
            return f"its operand {operand} is as long as there are tokens"
        case fx.Recount(operand):
            return f"its operand {operand} is computed again, from the mask of the tokens left"
        case fx.Rescale():
            return "what it gives is scaled from the number of all tokens to that of those left"
        case fx.Regroup(source, pool):
            pooled = f", with the {pool} of each group" if pool else ""
            return f"ends a region of views, which becomes one view of '{source}'{pooled}"
        case _:
            return assert_never(edit)


def _target(dim: Dim, space: TokenSpace) -> str:
    parts = ["batch"] if dim.batch else []
    if dim.part == "rest":
        return "1"
    if dim.run is not None:
        kept = "kept" if dim.run.has_patches(space) else _run(dim.run, space)
        parts.append("kept groups" if dim.part == "groups" else kept)
    if dim.factor != 1 or not parts:
        parts.append(str(dim.factor))
    return " × ".join(parts)
