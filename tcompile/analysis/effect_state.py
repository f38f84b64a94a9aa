"""The state of a walk: what the rules look at, and the result that they write to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.count_state import Counts
from tcompile.analysis.effects import Barrier, Effects, ReductionPoint, Region
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import TokenSpace
from tcompile.analysis.token_dims import Dim, Dims, Run, locate
from tcompile.core.graph import shape


class BarrierError(Exception):
    """Raised inside a rule; becomes a `Barrier` at the node."""


@dataclass
class Walk:
    """One walk over a graph.

    Attributes:
        attentions: by the name of their softmax or `Attention` node.
        known: dims of tensors, shared between walks over the same graph and space.
        points: where tokens leave; the stage after the first is 1.
        cuts: tensor → (stage that begins there, the cut).
        ends: tensor → stage that ends there.
        backs: the stages that begin with every token back.
        restorable: nodes that may get every token back where they could not do with fewer.
        regions: tensors inside a region of views whose dims do not follow the tokens.
        tainted: tensors with a row for every token, of which only the kept ones are right.
        measured: tensor → the stage of the tokens that it is, or was summed from, where not 0.
        node: the node that is visited.
    """

    facts: Facts
    space: TokenSpace
    attentions: Mapping[str, Attention]
    known: dict[str, Dims]
    counts: Counts
    points: tuple[ReductionPoint, ...]
    cuts: Mapping[str, tuple[int, ReductionPoint]]
    ends: Mapping[str, int]
    backs: frozenset[int]
    restorable: frozenset[str]
    result: Effects = field(default_factory=Effects)
    regions: dict[str, Region] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    node: gs.Node | None = None

    def stage(self, tensor: gs.Tensor) -> int:
        """The stage of a tensor as the node that is visited reads it."""
        cut = self.cuts.get(tensor.name)
        if cut is not None and cut[1].region and self.node is not None:
            return cut[0] if self.node.name in cut[1].region else 0
        return self.result.stage.get(tensor.name, 0)

    def dims(self, tensor: gs.Tensor) -> Dims:
        """The dims of a tensor in terms of the token space; None where one cuts through it."""
        known = self.known.get(tensor.name)
        if known is None:
            known = self.known[tensor.name] = locate(self.facts.of(tensor), self.space)
        return known

    def all_dims(self, tensor: gs.Tensor) -> tuple[Dim, ...]:
        """Dims of a tensor; opaque ones count as plain."""
        return tuple(
            d or Dim(n, False, None) for d, n in zip(self.dims(tensor), shape(tensor), strict=True)
        )

    def has_patches(self, dim: Dim | None) -> bool:
        return dim is not None and dim.has_patches(self.space)

    def run(self, tensor: gs.Tensor, axis: int) -> Run | None:
        """The run along the axis, if the patches are in it."""
        dim = self.dims(tensor)[axis]
        return dim.run if dim is not None and self.has_patches(dim) else None

    def beside(self, tensor: gs.Tensor) -> bool:
        """Return whether it is a mask or the like: computed from inputs that are not images."""
        return self.facts.is_live(tensor) and tensor.name not in self.facts.imaged

    def no_merge(self, node: gs.Node, why: str) -> None:
        """Forbid merging, whose sizes would be ignored here; dropping tokens is fine."""
        self.result.merge_barriers.append(Barrier(node.name, node.op, why))

    def no_drop(self, node: gs.Node, why: str) -> None:
        """Forbid dropping and fusing; merging keeps the sizes that sums are weighted by."""
        self.result.drop_barriers.append(Barrier(node.name, node.op, why))
