"""Outcomes of walks from single points, at a cost that is linear in the depth of a model.

A walk from one block runs through the next, and from there on it mostly is the walk from the next
block: the same tensors carry fewer tokens, and nothing else does. So walks begin at the last point,
and one that comes to a state in which another was before takes over what that one met afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.count_state import Counts
from tcompile.analysis.effect_state import Walk
from tcompile.analysis.effect_walk import begin, refused_output, visit
from tcompile.analysis.effects import Barrier, ReductionPoint
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dims


@dataclass(frozen=True)
class Outcome:
    """What a walk meets first of each kind.

    Attributes:
        barrier, merge, fuse, drop: the first in execution order; those of outputs come last.
        output: the first output that cannot be given, with its place among the outputs.
        grouped: the first node whose result has one position for each group of tokens.
    """

    barrier: Barrier | None = None
    output: tuple[int, Barrier] | None = None
    merge: Barrier | None = None
    fuse: Barrier | None = None
    drop: Barrier | None = None
    grouped: str = ""

    @property
    def reason(self) -> Barrier | None:
        """What no reducer can do with fewer tokens."""
        return self.barrier or (self.output[1] if self.output else None)

    def then(self, later: Outcome) -> Outcome:
        """The outcome of this part of a walk and of what comes after it."""
        outputs = [o for o in (self.output, later.output) if o is not None]
        return Outcome(
            self.barrier or later.barrier,
            min(outputs, key=lambda o: o[0], default=None),
            self.merge or later.merge,
            self.fuse or later.fuse,
            self.drop or later.drop,
            self.grouped or later.grouped,
        )


#: The place of a node, and what is on its way there: tokens, sums of them, regions, taint.
State: TypeAlias = tuple[int, frozenset[object]]


class Paths:
    """The nodes of a graph by place, and how far each tensor is read."""

    def __init__(self, graph: gs.Graph) -> None:
        self.nodes: Sequence[gs.Node] = list(graph.nodes)
        self.place = {n.name: i for i, n in enumerate(self.nodes)}
        self.writer = {str(t.name): i for i, n in enumerate(self.nodes) for t in n.outputs}
        self.last_read = {str(t.name): i for i, n in enumerate(self.nodes) for t in n.inputs}
        self.outputs = {str(o.name): (i, o) for i, o in enumerate(graph.outputs)}

    def between(self, start: str, end: str) -> frozenset[str]:
        """Names of the nodes on a path from one tensor to another."""
        low, high = self.writer.get(start, -1) + 1, self.writer.get(end, -1) + 1
        return between(self.nodes[low:high], start, end)


def between(nodes: Sequence[gs.Node], start: str, end: str) -> frozenset[str]:
    """Names of those of the nodes, in execution order, on a path from one tensor to another."""
    below, down = {start}, set()
    for node in nodes:
        if any(t.name in below for t in node.inputs):
            below.update(o.name for o in node.outputs)
            down.add(node.name)
    needed, up = {end}, set()
    for node in reversed(nodes):
        if any(o.name in needed for o in node.outputs):
            needed.update(t.name for t in node.inputs)
            up.add(node.name)
    return frozenset(down & up)


@dataclass
class Outcomes:
    """Outcomes of walks over one graph and token space.

    Attributes:
        points: the tensors at which a walk may come to the state of another.
        restorable: nodes that may get every token back where they could not do with fewer.
    """

    paths: Paths
    facts: Facts
    space: TokenSpace
    attentions: Mapping[str, Attention]
    counts: Counts
    points: frozenset[str]
    restorable: frozenset[str] = frozenset()
    dims: dict[str, Dims] = field(default_factory=dict)
    known: dict[State, Outcome] = field(default_factory=dict)

    def of(self, cut: ReductionPoint) -> Outcome:
        """Follow one cut to the outputs."""
        walk = begin(
            self.facts,
            self.space,
            self.attentions,
            self.counts,
            [cut],
            restorable=self.restorable,
            known=self.dims,
        )
        points = self.points | {cut.tensor, cut.until}
        parts: list[tuple[State | None, Outcome]] = []
        part, state, later = Outcome(), None, Outcome()
        for place in range(self.paths.writer.get(cut.tensor, 0), len(self.paths.nodes)):
            node = self.paths.nodes[place]
            visit(walk, node)
            part = part.then(self._part(walk, node.outputs))
            if not any(o.name in points for o in node.outputs):
                continue
            parts.append((state, part))
            part, state = Outcome(), (place, self._alive(walk, place))
            if not state[1]:
                break
            if cut.region:  # what lies around the block is not in the state
                state = None
            elif state in self.known:
                later = self.known[state]
                break
        else:
            rest = [t for _, t in self.paths.outputs.values() if t.name in walk.regions]
            parts.append((state, part.then(self._part(walk, rest, at_end=True))))
        for state, part in reversed(parts):
            later = part.then(later)
            if state is not None:
                self.known[state] = later
        return later

    def _part(self, walk: Walk, outputs: Sequence[gs.Tensor], at_end: bool = False) -> Outcome:
        """Take from a walk what it met since it was asked last."""
        found = walk.result
        firsts = [found.barriers, found.merge_barriers, found.fuse_barriers, found.drop_barriers]
        barrier, merge, fuse, drop = (b[0] if b else None for b in firsts)
        part = Outcome(barrier, None, merge, fuse, drop, found.grouped)
        for met in firsts:
            met.clear()
        found.grouped = ""
        for out in outputs:
            if out.name in self.paths.outputs and (at_end or out.name not in walk.regions):
                refused = refused_output(walk, out)
                if refused is not None:
                    here = Outcome(output=(self.paths.outputs[out.name][0], refused))
                    part = part.then(here)
        return part

    def _alive(self, walk: Walk, place: int) -> frozenset[object]:
        """Return what the rest of a walk depends on after the node at a place, and forget the rest.

        An output is judged when it is written, so that tokens in it are not on their way; only a
        region of views may get every token back later.
        """
        last, stage = self.paths.last_read, walk.result.stage
        for seen in (stage, walk.measured):
            for tensor in [t for t in seen if last.get(t, -1) <= place and t not in walk.regions]:
                del seen[tensor]
        alive: set[object] = {("tokens", *item) for item in stage.items()}
        # Sums of tokens that are tokens themselves say nothing more.
        alive.update(("sum", t, n) for t, n in walk.measured.items() if stage.get(t) != n)
        alive.update(
            ("view", tensor, region)
            for tensor, region in walk.regions.items()
            if last.get(tensor, -1) > place or tensor in self.paths.outputs
        )
        alive.update(("taint", t) for t in walk.tainted if last.get(t, -1) > place)
        return frozenset(alive)
