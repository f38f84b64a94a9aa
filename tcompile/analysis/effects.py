"""Effects of removing tokens at given points: edits of the nodes downstream, and barriers.

One walk answers both questions: the reduce pass applies the edits, and a site is legal exactly when
its walk meets no barrier. Tensors are followed by *stage*: 0 before any cut, k after the k-th.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tcompile.analysis.attention import Attention
from tcompile.analysis.space import Order, TokenSpace
from tcompile.analysis.token_dims import Dim, Part, Run

Vector = npt.NDArray[np.float64]


#: How the members of a group become one; empty where they do not.
Pooling = Literal["", "mean", "max"]


@dataclass(frozen=True)
class SetShape:
    """Reshape or Expand: new target dims."""

    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class SetSlice:
    """Slice along tokens: take `part` of `whole`; `others` are cut off before and behind it."""

    axis: int
    whole: Run
    part: Run
    others: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SetSplit:
    """Split along tokens into these runs, and into so many keys that are no tokens."""

    parts: tuple[Run | int, ...]


@dataclass(frozen=True)
class SetGather:
    """Gather of fixed positions, or of a run, along tokens."""

    whole: Run
    part: Run | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class SideAxis:
    """An axis of a side input that runs over tokens, or the first of `span` axes that do; `others`
    are rows for learned keys or sinks before and behind them, which stay."""

    axis: int
    run: Run
    part: Part = "tokens"
    span: int = 1
    others: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Side:
    """Operand `operand` is a side input with token axes: gather them.

    Attributes:
        live: it depends on the image, so it has all tokens rather than positions.
        fill: what a token without a position reads: 1 of cosines and 0 of sines, which does
            not rotate; None where such a token cannot be.
    """

    operand: int
    axes: tuple[SideAxis, ...]
    live: bool = False
    fill: float | None = None


@dataclass(frozen=True)
class Restore:
    """Operand `operand` gets a row for every token again before the node reads it."""

    operand: int


@dataclass(frozen=True)
class Regroup:
    """The node, the last of a region of views, reads `source` instead: one view does it all.

    Attributes:
        source: the last tensor before the region whose dims follow the tokens.
        pool: `mean` or `max` over the members of each group on the way.
    """

    source: str
    pool: Pooling = ""


@dataclass(frozen=True)
class Reorder:
    """A Gather that puts tokens or groups in another order: those that are left, in that order."""

    axis: int
    order: Order
    run: Run


@dataclass(frozen=True)
class Pool:
    """Mean or sum of `operand` over a run of tokens along `axis`: weigh by size after merging."""

    axis: int
    run: Run
    operand: int = 0


@dataclass(frozen=True)
class Trim:
    """A stored operand that holds one number along a token axis: as long as there are tokens."""

    operand: int
    axis: int
    dim: Dim


@dataclass(frozen=True)
class Recount:
    """Operand `operand` was computed from a mask of every token: from that of those left.

    Attributes:
        stage: of the tokens that it is joined with.
    """

    operand: int
    stage: int


@dataclass(frozen=True)
class Factor:
    """(what is counted + offset) ** power, as a factor of a literal.

    Attributes:
        base: `size`: how many tokens; `weights`: the sum of the constant mask over them.
    """

    base: Literal["size", "weights"]
    offset: int
    power: Fraction


@dataclass(frozen=True, eq=False)
class Summed:
    """The tokens that a sum or a mean runs over.

    Attributes:
        dim: the axis, in terms of the token space.
        weights: [n] the constant mask that its tokens were multiplied by; None: all alike.
        terms: how many positions of other axes are summed with each token.
    """

    dim: Dim
    weights: Vector | None
    terms: int

    def count(self, base: str, space: TokenSpace) -> float:
        """The sum of what is counted, in the dense model."""
        if base == "weights" and self.weights is not None:
            return float(self.weights.sum()) * self.terms
        return float(self.dim.size(space, space.patches, 1) * self.terms)


@dataclass(frozen=True, eq=False)
class Rescale:
    """The result of a node is multiplied by the ratio of counts now and in the dense model.

    Attributes:
        summed: what is counted.
        factors: of the ratio.
        operand: the constant that can take the ratio in; None: the result is multiplied.
        inverse: whether the node divides by that constant.
        stage: of the tokens that were summed.
    """

    summed: Summed
    factors: tuple[Factor, ...]
    operand: int | None = None
    inverse: bool = False
    stage: int = 0


@dataclass(frozen=True)
class Bias:
    """The softmax of an attention whose keys were reduced: add log size after merging."""

    attention: Attention


Edit: TypeAlias = (
    SetShape
    | SetSlice
    | SetSplit
    | SetGather
    | Side
    | Pool
    | Bias
    | Restore
    | Regroup
    | Reorder
    | Rescale
    | Recount
    | Trim
)


@dataclass(frozen=True)
class ReductionPoint:
    """A point where tokens leave: at a tensor, for good or for the length of a block.

    Attributes:
        tensor: the stream they leave.
        until: where they return, where they do.
        region: the nodes between the two; only these read the reduced stream.
        merged: those that leave for the length of a region are in it as part of others.
        back: nothing leaves, but all that left before are back from here on.
    """

    tensor: str
    until: str = ""
    region: frozenset[str] = frozenset()
    merged: bool = False
    back: bool = False


@dataclass(frozen=True)
class Region:
    """A region of views: the last tensor before it, its first node, and the pool met inside."""

    source: str
    head: str
    pool: Pooling = ""


@dataclass(frozen=True)
class Barrier:
    """The reason why tokens may not have left upstream of a node."""

    node: str
    op: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}' {self.why}"


@dataclass
class Effects:
    """The result of a walk.

    Attributes:
        edits: by node name.
        stage: of every tensor that carries patches, where not 0.
        node_stage: of the inputs of every node, where not 0.
        dims: of every tensor after the first cut.
        cuts: dims of the streams that tokens leave.
        restored: nodes that get every token back, with the stage their operands had.
        grouped: the first node whose result has one position for each group of tokens.
        barriers, merge_barriers, fuse_barriers, drop_barriers: in execution order; the last hold
            wherever tokens leave without a trace in the sizes of those that stay.
    """

    edits: dict[str, list[Edit]] = field(default_factory=dict)
    stage: dict[str, int] = field(default_factory=dict)
    node_stage: dict[str, int] = field(default_factory=dict)
    dims: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    cuts: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    restored: dict[str, int] = field(default_factory=dict)
    grouped: str = ""
    barriers: list[Barrier] = field(default_factory=list)
    merge_barriers: list[Barrier] = field(default_factory=list)
    fuse_barriers: list[Barrier] = field(default_factory=list)
    drop_barriers: list[Barrier] = field(default_factory=list)
