"""Following cuts downstream: every node is visited once, in execution order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import transfer as tf
from tcompile.analysis.attention import Attention
from tcompile.analysis.counts import Counts, find_counts
from tcompile.analysis.effect_joins import Joins
from tcompile.analysis.effect_ops import BarrierError
from tcompile.analysis.effects import (
    Barrier,
    Dims,
    Edit,
    Effects,
    Recount,
    ReductionPoint,
    Region,
    Regroup,
    Restore,
)
from tcompile.analysis.facts import Facts
from tcompile.analysis.groups import VIEWS
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.transfer_grid import tiled_pool
from tcompile.core.graph import attr, ints, is_const, producer, reduced_axes, shape

#: Ops that always rearrange what a grid of tokens holds, even where both sides can be located.
_REGROUPING = ("SpaceToDepth", "DepthToSpace", "AveragePool", "MaxPool")


def effects(
    graph: gs.Graph,
    facts: Facts,
    space: TokenSpace,
    attentions: Sequence[Attention],
    cuts: Sequence[str | ReductionPoint],
    *,
    restorable: frozenset[str] = frozenset(),
    known: dict[str, Dims] | None = None,
    counts: Counts | None = None,
) -> Effects:
    """Follow the cuts (tensors, in execution order) to the outputs.

    Args:
        restorable: nodes that may get every token back where they could not do with fewer.
        known: dims of tensors, shared between walks over the same graph and space.
        counts: what grows with the number of tokens, shared in the same way.
    """
    result = Effects()
    made = [c if isinstance(c, ReductionPoint) else ReductionPoint(c) for c in cuts]
    walker = Walker(
        facts,
        space,
        {a.node: a for a in attentions},
        result,
        {} if known is None else known,
        find_counts(graph, facts, space) if counts is None else counts,
    )
    walker.cuts = {c.tensor: (i + 1, c) for i, c in enumerate(made)}
    walker.ends = {c.until: i + 1 for i, c in enumerate(made) if c.until}
    walker.backs = {i + 1 for i, c in enumerate(made) if c.back}
    walker.restorable = restorable
    for node in _from_first(graph, walker.cuts):
        stage = walker.visit(node)
        if result.stage and any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            result.barriers.append(Barrier(node.name, node.op, "holds a sub-graph"))
        if stage:
            result.node_stage[node.name] = stage
        for out in node.outputs:
            walker.pass_cut(node, out, stage)
    for out in graph.outputs:
        walker.finish(out)
    return result


def _from_first(graph: gs.Graph, cuts: Mapping[str, object]) -> Sequence[gs.Node]:
    """The nodes in execution order, from the one that writes the first cut on."""
    for i, node in enumerate(graph.nodes):
        if any(o.name in cuts for o in node.outputs):
            return list(graph.nodes[i:])
    return list(graph.nodes)


class Walker(Joins):
    """Visits nodes in execution order and writes into `result`.

    Attributes:
        cuts: tensor → (stage that begins there, the cut).
        ends: tensor → stage that ends there.
        backs: the stages that begin with every token back.
        regions: tensors inside a region of views whose dims do not follow the tokens.
        tainted: tensors with a row for every token, of which only the kept ones are right.
        measured: tensor → the stage of the tokens that it is, or was summed from, where not 0.
    """

    cuts: Mapping[str, tuple[int, ReductionPoint]]
    ends: Mapping[str, int]
    backs: set[int]
    restorable: frozenset[str]

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.regions: dict[str, Region] = {}
        self.measured: dict[str, int] = {}
        self.tainted: set[str] = set()
        self.node: gs.Node | None = None

    # -- cuts ------------------------------------------------------------------------------------

    def stage(self, tensor: gs.Tensor) -> int:
        """The stage of a tensor as the node being visited reads it."""
        cut = self.cuts.get(tensor.name)
        if cut is not None and cut[1].region and self.node is not None:
            return cut[0] if self.node.name in cut[1].region else 0
        return super().stage(tensor)

    def pass_cut(self, node: gs.Node, out: gs.Tensor, stage: int) -> None:
        """Begin or end a stage at a tensor just written."""
        if out.name in self.ends:
            self.result.stage.pop(out.name, None)
            self.measured.pop(out.name, None)
        cut = self.cuts.get(out.name)
        if cut is None:
            return
        number, where = cut
        before = 0 if number - 1 in self.backs else number - 1
        if where.region == frozenset() and stage != before:
            self.result.barriers.append(
                Barrier(node.name, node.op, "does not follow the reduction before it")
            )
        self.result.cuts[out.name] = self.all_dims(out)
        if where.back:
            self.result.stage.pop(out.name, None)
            self.measured.pop(out.name, None)
            return
        self.result.stage[out.name] = number
        if not where.region:
            self.result.dims[out.name] = self.result.cuts[out.name]

    def region_of(self, tensor: str) -> ReductionPoint | None:
        """The bypass that a tensor lies inside of."""
        stage = self.result.stage.get(tensor, 0)
        for number, cut in self.cuts.values():
            if number == stage and cut.region and tensor != cut.tensor:
                return cut
        return None

    def finish(self, out: gs.Tensor) -> None:
        """What an output of the graph may be."""
        maker = producer(out)
        name, op = (maker.name, maker.op) if maker is not None else (str(out.name), "input")
        why = ""
        cut = self.cuts.get(out.name)
        if cut is not None and cut[1].region:
            return  # outside of the block that tokens bypass, the stream is whole
        if self.region_of(out.name) is not None:
            why = "is written where tokens are away for a while"
        elif out.name in self.regions:
            if not self._restore_region(self.regions[out.name], self.result.stage[out.name]):
                why = "splits or permutes the token axis"
        elif not self.restorable and self.result.stage.get(out.name, 0):
            dims = self.result.dims[out.name]
            why = (
                "gives a grid, which fewer tokens do not fill"
                if any(d.part == "rest" for d in dims)
                else ""
            )
        if why:
            self.result.barriers.append(Barrier(name, op, why))

    # -- one node --------------------------------------------------------------------------------

    def visit(self, node: gs.Node) -> int:
        """Record the node's edits or barrier; returns the stage of its inputs."""
        self.node = node
        inputs = [t for t in node.inputs if not t.is_empty()]
        stage = max((self.stage(t) for t in inputs), default=0)
        try:
            if stage == 0:
                self._check_tainted(node)
                self._record(node, self._count(node, 0))
                return 0
            self._check_leaves(node, inputs)
            self._check_neighbours(node)
            edits = self._edits(node, stage)
            edits += self._count(node, stage)
        except BarrierError as error:
            if self._restore(node, stage):
                return 0
            self.result.barriers.append(Barrier(node.name, node.op, str(error)))
            edits = []
        self._record(node, edits)
        for out in node.outputs:
            if out.name in self.regions:
                self.result.stage[out.name] = stage
                continue
            self.result.dims[out.name] = self.all_dims(out)
            if not out.is_empty() and any(self.patchy(d) for d in self.dims(out)):
                self.result.stage[out.name] = stage
                if any(d is not None and d.part == "groups" for d in self.dims(out)):
                    self.result.grouped = self.result.grouped or node.name
        return stage

    def _record(self, node: gs.Node, edits: list[Edit]) -> None:
        if edits:
            self.result.edits[node.name] = edits

    def _count(self, node: gs.Node, stage: int) -> list[Edit]:
        """What follows the number of tokens: literals, and masks that are counted."""
        of = [self.measured.get(t.name, 0) for t in node.inputs]
        taken = max([stage, *of], default=0)
        if taken == 0:
            return []
        for out in node.outputs:
            self.measured[out.name] = taken
        edits: list[Edit] = []
        for i, (tensor, one) in enumerate(zip(node.inputs, of, strict=True)):
            value = self.counts.of(tensor)
            if is_const(tensor) or one == taken:
                continue
            if self.stage(tensor) == taken:
                continue  # tokens, of which something was summed before
            if tensor.name in self.counts.beside:
                edits.append(Recount(i, taken))
                taker = self.counts.beside[tensor.name]
                if taker:
                    self._no_merge(node, f"reads what '{taker}' makes of all tokens of a mask")
            elif value.degree > 0:
                self._no_drop(node, "joins sums over more and over fewer tokens")
        unresolved = self.counts.unresolved.get(node.name)
        if unresolved and stage:
            why = f"sums over tokens, and {unresolved}, so that fewer tokens change its scale"
            if node.name in self._restorable(stage):
                raise BarrierError(why)
            self._no_drop(node, why)
        if node.name in self.counts.sized:
            self._no_drop(node, "reads a number that was computed from how many tokens there are")
        if node.name in self.counts.doubts:
            self._no_drop(node, self.counts.doubts[node.name])
        scaled = self.counts.rescales.get(node.name)
        if scaled is not None:
            edits.append(replace(scaled, stage=taken))
        return edits

    def _no_drop(self, node: gs.Node, why: str) -> None:
        """Forbid dropping and fusing; merging keeps the sizes that sums are weighted by."""
        self.result.drop_barriers.append(Barrier(node.name, node.op, why))

    def _check_neighbours(self, node: gs.Node) -> None:
        """At one place along the tokens, each image of the batch has another one."""
        if not self.knows(node):
            return
        for operand, tensor in enumerate(node.inputs):
            if tensor.is_empty() or is_const(tensor) or not self.stage(tensor):
                continue
            axes = self.facts.of(tensor)
            mixed = mixed_axes(node, operand)
            if not any(ax.has_batch(axes[i]) for i in mixed):
                continue
            tokens = [i for i, d in enumerate(self.dims(tensor)) if self.patchy(d)]
            if node.op.startswith("Reduce") and set(tokens) <= set(mixed):
                continue  # of all tokens at once, in whatever order
            raise BarrierError(
                "works along the batch, and at one place each image has another token"
            )

    def _check_leaves(self, node: gs.Node, inputs: list[gs.Tensor]) -> None:
        for tensor in inputs:
            cut = self.region_of(tensor.name)
            if cut is not None and node.name not in cut.region:
                raise BarrierError(f"reads '{tensor.name}' from inside the block")

    def _edits(self, node: gs.Node, stage: int) -> list[Edit]:
        region = self._entered(node)
        located = all(None not in self.dims(out) for out in node.outputs)
        view = node.op in VIEWS or tiled_pool(node) is not None
        patchy = any(self.patchy(d) for t in node.inputs[:1] for d in self.dims(t))
        if view and (region is not None or not located or (patchy and node.op in _REGROUPING)):
            return self._in_region(node, region)
        if region is not None:
            raise BarrierError(self._cut_text(node.inputs[0]))
        for out in node.outputs:
            self._check_axes(out)
        edits = self.joins(node, stage) + self.rule(node)
        self._check_claims(node)
        return edits

    def _check_claims(self, node: gs.Node) -> None:
        claims = self.facts.conflicts.get(node.name)
        if claims is not None:
            raise BarrierError(claims)

    def _check_axes(self, out: gs.Tensor) -> None:
        if out.name in self.facts.opaque:
            raise BarrierError("loses track of the token axis")
        if None in self.dims(out):
            raise BarrierError(self._cut_text(out))

    def _cut_text(self, tensor: gs.Tensor) -> str:
        lost = [
            ax.show(a)
            for a, d in zip(self.facts.of(tensor), self.dims(tensor), strict=True)
            if d is None
        ]
        return f"splits or permutes the token axis: {', '.join(lost)}"

    # -- regions of views ------------------------------------------------------------------------

    def _entered(self, node: gs.Node) -> Region | None:
        """The region that the node reads from."""
        return next((self.regions[t.name] for t in node.inputs if t.name in self.regions), None)

    def _in_region(self, node: gs.Node, region: Region | None) -> list[Edit]:
        """A view whose result cannot follow the tokens yet, or at last does again."""
        out = node.outputs[0]
        if out.name in self.facts.opaque:
            raise BarrierError("loses track of the token axis")
        pool = {"AveragePool": "mean", "MaxPool": "max"}.get(node.op, "")
        if region is None:
            region = Region(node.inputs[0].name, node.name, pool)
        elif pool:
            if region.pool:
                raise BarrierError("pools tokens twice")
            region = Region(region.source, region.head, pool)
        if None in self.dims(out):
            self.regions[out.name] = region
            return []
        if self.space.grouping is None:
            raise BarrierError("takes tokens out of their order and puts them back")
        return [Regroup(region.source, region.pool)]  # type: ignore[arg-type]

    # -- getting every token back ----------------------------------------------------------------

    def _restore(self, node: gs.Node, stage: int) -> bool:
        """Give the node (or the head of the region it ends) every token back, where allowed."""
        if stage == 0:
            return False
        if self._bypassed(stage) and any(o.name in self.facts.opaque for o in node.outputs):
            return False
        region = self._entered(node)
        if region is not None:
            if not self._restore_region(region, stage):
                return False
        else:
            if node.name not in self._restorable(stage):
                return False
            edits: list[Edit] = [
                Restore(i)
                for i, t in enumerate(node.inputs)
                if not t.is_empty() and self.stage(t) == stage
            ]
            self.result.edits[node.name] = edits
            self.result.restored[node.name] = stage
        if self._bypassed(stage):
            try:
                self.tainted.update(t.name for t in node.inputs if self.stage(t) == stage)
                self._check_tainted(node)
            except BarrierError:
                return False
            self.tainted.update(o.name for o in node.outputs)
        return True

    def _restore_region(self, region: Region, stage: int) -> bool:
        """Give the head of a region of views every token back, where allowed."""
        if region.head not in self._restorable(stage):
            return False
        self.result.edits[region.head] = [Restore(0)]
        self.result.restored[region.head] = stage
        for name in [n for n, r in self.regions.items() if r.head == region.head]:
            del self.regions[name]
            self.result.stage.pop(name, None)
            if self._bypassed(stage):
                self.tainted.add(name)
        return True

    def _bypassed(self, stage: int) -> bool:
        return any(n == stage and c.region for n, c in self.cuts.values())

    def _restorable(self, stage: int) -> frozenset[str]:
        """The nodes that may get every token back."""
        inside = [c for n, c in self.cuts.values() if n == stage and c.region]
        if inside:
            return frozenset() if inside[0].merged else inside[0].region
        return self.restorable

    def _check_tainted(self, node: gs.Node) -> None:
        """Rows of tokens that were not computed may be moved, never mixed with others."""
        mine = [(i, t) for i, t in enumerate(node.inputs) if t.name in self.tainted]
        if not mine:
            return
        roots = ax.roots(self.space.axis)
        for operand, tensor in mine:
            axes = self.facts.of(tensor)
            for axis in mixed_axes(node, operand):
                if any(d.root in roots for d in axes[axis]) or ax.has_batch(axes[axis]):
                    raise BarrierError("mixes tokens that bypass the block with those in it")
        self.tainted.update(o.name for o in node.outputs)


def mixed_axes(node: gs.Node, operand: int) -> list[int]:
    """The axes of an operand that the node mixes or picks positions along; all where unknown."""
    tensor = node.inputs[operand]
    rank = len(tensor.shape)
    if node.op in _APART:
        return []
    if node.op == "CumSum" and is_const(node.inputs[1]):
        return [ints(node.inputs[1])[0] % rank] if operand == 0 else []
    if node.op in _ALONG:
        return [int(attr(node, "axis", _ALONG[node.op])) % rank]
    if node.op == "Gather":
        return [int(attr(node, "axis", 0)) % rank] if operand == 0 else []
    if node.op == "Slice":
        bounds = tf.slice_bounds(node) if operand == 0 else {}
        if bounds is not None:
            sizes = shape(tensor)
            return [a for a, b in bounds.items() if b != (0, sizes[a], 1)]
    if node.op in tf.REDUCTIONS.split():
        return reduced_axes(node)
    if node.op in ("MatMul", "Gemm"):
        return [tf.contracted(node)[operand] % rank] if operand < 2 else []
    if node.op == "Einsum" and tf.spelled_out(node):
        return [axis for i, axis in tf.einsum_contracted(node) if i == operand]
    if node.op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        return list(range(int(attr(node, "axis", -1)) % rank, rank))
    if node.op == "Attention":
        return [rank - 2, rank - 1]  # heads, which the batch may be joined with, are apart
    if node.op in _PER_IMAGE:
        return list(range(1, rank))
    return list(range(rank))


#: Ops that treat every position by itself.
_APART = frozenset(
    (
        *tf.ELEMENTWISE.split(),
        *tf.BROADCAST.split(),
        *tf.VIEWS.split(),
        "Transpose",
        "Expand",
        "BatchNormalization",
        "Tile",
        "Pad",
    )
)
#: Ops that work along one axis, and which by default.
_ALONG = {
    "Concat": 0,
    "Split": 0,
    "Softmax": -1,
    "LogSoftmax": -1,
    "LpNormalization": -1,
    "ArgMax": 0,
    "ArgMin": 0,
    "Hardmax": -1,
}
#: Ops whose first axis is the batch by their definition.
_PER_IMAGE = frozenset(
    (
        *tf.SPATIAL.split(),
        "InstanceNormalization",
        "GroupNormalization",
        "LRN",
        "SpaceToDepth",
        "DepthToSpace",
    )
)
