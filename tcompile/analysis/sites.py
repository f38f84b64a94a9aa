"""Sites: the points where tokens may leave, and why they may not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.counts import find_counts
from tcompile.analysis.effects import Barrier, ReductionPoint
from tcompile.analysis.facts import Facts
from tcompile.analysis.outcomes import Outcome, Outcomes, Paths
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.structure import Block, carries
from tcompile.analysis.token_dims import stream_layout
from tcompile.core.graph import attr, consumers, producer, tensors_of
from tcompile.core.site import SiteName

#: What treats each token by itself on its way from the stream.
NORMS = ("LayerNormalization", "RMSNormalization", "Identity")


@dataclass(frozen=True)
class Verdict:
    """The reasons why tokens may not leave somewhere; empty where they may.

    Attributes:
        reason: by any reducer.
        merge: by merging, which needs sizes.
        fuse: by fusing those that leave into one token, which has no position.
        drop: where tokens leave that no size counts, so that what is summed becomes less.
    """

    reason: str = ""
    merge: str = ""
    fuse: str = ""
    drop: str = ""

    def of(self, traits: Iterable[str]) -> str:
        """The reason against a reducer.

        Args:
            traits: `merge`, `fuse`, both or neither; `drop` if it merges and drops some besides.
        """
        named = set(traits)
        drops = "drop" in named or "merge" not in named
        against = [
            self.reason,
            self.merge if "merge" in named else "",
            self.drop if drops else "",
            self.fuse if "fuse" in named else "",
        ]
        return next(filter(None, against), "")


@dataclass(frozen=True)
class Site:
    """A point where tokens may leave.

    Attributes:
        name: `attn:3`, `block:3`, `around:3`, `inside:3` or `output`.
        tensor: the stream there.
        block: whose attention the scores read.
        reduced: what speaks against it.
        restored: what speaks against it even where outputs get every token back.
        granularity: how many tokens leave together: groups, times segments; 1: one by one.
        restored_granularity: the same where outputs get every token back.
        unread: why scores may not read the block's attention there; empty where they may.
        until: the tensor at which they return, around a block or inside its attention.
    """

    name: SiteName
    tensor: str
    block: int
    reduced: Verdict
    restored: Verdict
    granularity: int = 1
    restored_granularity: int = 1
    unread: str = ""
    until: str = ""

    def step(self, outputs: str) -> int:
        """The granularity for `reduced` or `restored` outputs."""
        return self.restored_granularity if outputs == "restored" else self.granularity

    @property
    def scored(self) -> bool:
        """Return whether scores may read the block's attention there."""
        return not self.unread

    @property
    def kind(self) -> str:
        """`attn`, `block`, `around`, `inside` or `output`."""
        return self.name.kind

    @property
    def reason(self) -> str:
        return self.reduced.reason

    @property
    def legal(self) -> bool:
        return not self.reason

    def verdict(self, outputs: str) -> Verdict:
        """For `reduced` or `restored` outputs."""
        return self.restored if outputs == "restored" else self.reduced

    def cut(self, paths: Paths, *, back: bool = False) -> ReductionPoint:
        """The point that the walk begins at.

        Args:
            back: every token returns there.
        """
        if not self.until:
            return ReductionPoint(self.tensor, back=back)
        region = paths.between(self.tensor, self.until)
        return ReductionPoint(self.tensor, self.until, region, merged=self.kind == "inside")


def _refused(name: SiteName, tensor: str, block: Block, why: str, until: str = "") -> Site:
    """A site that no reducer may use."""
    verdict = Verdict(why, why, why, why)
    return Site(name, tensor, block.index, verdict, verdict, until=until)


def _windows(block: Block, space: TokenSpace) -> str:
    sides = " × ".join(map(str, block.window))
    if len(space.grid) > 1 and block.window == space.grid[1:]:
        return f"block {block.index} attends within each of {space.grid[0]} images or rows apart"
    return f"block {block.index} attends within windows of {sides} tokens"


class _Judge:
    """Decides of each site whether it is legal, by walking."""

    def __init__(
        self,
        graph: gs.Graph,
        facts: Facts,
        space: TokenSpace,
        attentions: Sequence[Attention],
        blocks: Sequence[Block],
        restorable: frozenset[str],
        only: Container[str] | None,
    ) -> None:
        self.facts, self.space, self.only = facts, space, only
        self.paths, self.tensors = Paths(graph), tensors_of(graph)
        #: Place of a node → the block whose attention it lies in.
        self.homes: dict[int, Block] = {}
        for block in blocks:
            readers = consumers(self.tensors[block.stream_in])
            first = min((self.paths.place[n.name] for n, _ in readers), default=0)
            for place in range(first, self.paths.writer[block.after_attention] + 1):
                self.homes.setdefault(place, block)
        by_node = {a.node: a for a in attentions}
        points = frozenset(t for b in blocks for t in (b.after_attention, b.stream_out))
        counts = find_counts(graph, facts, space)
        self.reduced = Outcomes(self.paths, facts, space, by_node, counts, points)
        self.restored = replace(self.reduced, restorable=restorable, known={})
        if space.grouping is not None:  # where every token comes back, groups need not stay whole
            free = replace(space, grouping=None)
            counts = find_counts(graph, facts, free)
            self.restored = Outcomes(
                self.paths, facts, free, by_node, counts, points, restorable=restorable
            )

    def site(self, name: SiteName, tensor: str, block: Block, until: str = "") -> Site:
        """Judge one point."""
        point = _refused(name, tensor, block, self.unfit(name, tensor, until), until)
        if point.reason:
            return point
        cut = point.cut(self.paths)
        found = self.reduced.of(cut)
        reduced = restored = self.verdict(found, block)
        size = 1
        if until:
            if not reduced.reason and name.kind != "inside":
                why = "around a block tokens can only be bypassed"
                reduced = restored = Verdict("", why, why, reduced.drop)
        else:
            if reduced.reason or found.grouped:
                restored = self.verdict(self.restored.of(cut), block)
            if found.grouped and self.space.grouping is not None:
                size = self.space.grouping.members
            if size > 1 and not reduced.reason:
                why = f"tokens leave in whole groups of {size}, which '{found.grouped}' joins; "
                merge, fuse = "merging would break them", "a fused token belongs to none"
                reduced = Verdict("", why + merge, why + fuse, reduced.drop)
            reduced, restored = (self.without_sums(v, block) for v in (reduced, restored))
        segments = self.space.segments
        return replace(
            point,
            reduced=reduced,
            restored=restored,
            granularity=size * segments,
            restored_granularity=segments,
            unread=block.unread,
        )

    def unfit(self, name: SiteName, tensor: str, until: str) -> str:
        """The reason to refuse a point without a walk; empty where there is none."""
        if self.only is not None and name not in self.only:
            return "it was not asked for"
        for one in () if self.space.tiles else filter(None, (tensor, until)):
            axes = self.facts.of(self.tensors[one])
            if stream_layout(axes, self.space) is None:
                found = " × ".join(map(ax.show, axes))
                return f"'{one}' is {found} there, which is not [batch, tokens, features]"
        if name.kind == "around":
            before, behind = (self.features(t) for t in (tensor, until))
            if before != behind:
                return f"the stream has {before} features before the block and {behind} behind it"
        return self.space.tiles

    def features(self, tensor: str) -> int:
        """The number of features of a stream; 0 where its layout is not known."""
        axes = self.facts.of(self.tensors[tensor])
        layout = stream_layout(axes, self.space)
        return 0 if layout is None else ax.size(axes[layout.features])

    def without_sums(self, verdict: Verdict, block: Block) -> Verdict:
        """The verdict with what windows and segments forbid besides."""
        if verdict.reason:
            return verdict
        merge, fuse = verdict.merge, verdict.fuse
        if not block.over_tokens:
            merge = merge or f"the keys of block {block.index} are not just the tokens"
        if self.space.segments > 1:
            fuse = fuse or f"each of {self.space.segments} segments would need a token of its own"
        return Verdict("", merge, fuse, verdict.drop)

    def verdict(self, found: Outcome, block: Block) -> Verdict:
        """The verdict that a walk's barriers come to."""
        reason = self.text(found.reason)
        if reason and block.window and "attends within" not in reason:
            reason = f"{_windows(block, self.space)}, and {reason}"
        others = (found.merge, found.fuse, found.drop)
        return Verdict(reason, *(reason or self.text(b) for b in others))

    def text(self, barrier: Barrier | None) -> str:
        """The reason, in terms of the model where the barrier lies in a block's attention."""
        if barrier is None:
            return ""
        block = self.homes.get(self.paths.place.get(barrier.node, -1))
        if block is None:
            return self.joined(barrier) or str(barrier)
        if not block.window:
            return f"in block {block.index}, {barrier}"
        place = f"{barrier.op} '{barrier.node}'"
        return f"{_windows(block, self.space)}, which needs every token in its place ({place})"

    def joined(self, barrier: Barrier) -> str:
        """The reason, where tokens are put together with others; empty where they are not."""
        if barrier.op != "Concat" or barrier.node not in self.paths.place:
            return ""
        node = self.paths.nodes[self.paths.place[barrier.node]]
        along = int(attr(node, "axis", 0)) % len(node.outputs[0].shape)
        whole = self.facts.of(node.outputs[0])[along]
        mine = set(self.space.pieces)
        parts = whole[0].root.pieces if len(whole) == 1 else ()
        if not any(p.axis == self.space.axis or p in mine for p in parts):
            return ""
        others = sum(p.size for p in parts if p not in mine)
        more = f"{others} more token{'s' if others > 1 else ''}"
        return (
            f"Concat '{node.name}' puts {more} among them, and what runs over all "
            f"{ax.size(whole)} from there on is not reduced"
        )


def find_sites(
    graph: gs.Graph,
    facts: Facts,
    space: TokenSpace,
    attentions: Sequence[Attention],
    blocks: Sequence[Block],
    restorable: frozenset[str],
    only: Container[str] | None = None,
) -> list[Site]:
    """Every site, in execution order, those around blocks last.

    Args:
        only: the names of those that are asked for, which are judged; None: all.
    """
    judge = _Judge(graph, facts, space, attentions, blocks, restorable, only)
    found: list[Site] = []
    for block in blocks:
        name = SiteName.of("attn", block.index)
        why = "attention and MLP run in parallel, so nothing lies between them"
        found.append(
            _refused(name, block.after_attention, block, why)
            if block.parallel
            else judge.site(name, block.after_attention, block)
        )
        found.append(judge.site(SiteName.of("block", block.index), block.stream_out, block))
    last = _output_tensor(graph, facts, space, blocks[-1].stream_out)
    found.append(judge.site(SiteName.of("output"), last, blocks[-1]))
    for block in blocks:
        name = SiteName.of("around", block.index)
        start, end = block.stream_in, block.stream_out
        found.append(
            _refused(name, start, block, _windows(block, space), end)
            if block.window
            else judge.site(name, start, block, end)
        )
        found.append(_inside(judge, block))
    return found


def _inside(judge: _Judge, block: Block) -> Site:
    """The site before the attention's projections, where merged tokens are split up again at the
    residual add."""
    name = SiteName.of("inside", block.index)
    start, end = block.stream_in, ""
    adder = producer(judge.tensors[block.after_attention])
    if adder is not None and adder.op == "Add" and not block.joined:
        end = next((str(t.name) for t in adder.inputs if t.name != start), "")
    region = judge.paths.between(start, end) if end else frozenset()
    tensor = judge.tensors[start]
    while region:
        nexts = [n for n in tensor.outputs if n.name in region]
        if len(nexts) != 1 or nexts[0].op not in NORMS:
            break
        tensor = nexts[0].outputs[0]
    why = ""
    if block.window:
        why = _windows(block, judge.space)
    elif not region or tensor.name == end:
        why = f"the attention of block {block.index} has no branch of its own"
    if why:
        return _refused(name, str(tensor.name), block, why, end or block.after_attention)
    return judge.site(name, str(tensor.name), block, end)


def _output_tensor(graph: gs.Graph, facts: Facts, space: TokenSpace, stream: str) -> str:
    """The last tensor downstream of the blocks that carries all tokens: past the final norm."""
    tensor = tensors_of(graph)[stream]
    while True:
        if any(tensor is o for o in graph.outputs):
            return str(tensor.name)
        nexts = [n for n in tensor.outputs if len(n.outputs) == 1]
        keeps = [n for n in nexts if n.op in NORMS]
        if len(tensor.outputs) != 1 or not keeps or not carries(facts, keeps[0].outputs[0], space):
            return str(tensor.name)
        tensor = keeps[0].outputs[0]
