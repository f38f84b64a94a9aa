"""What removing tokens at given points does to every node downstream, and what forbids it.

One walk answers both questions: the reduce pass applies the edits, and a site is legal exactly when
its walk meets no barrier. Tensors are followed by *stage*: 0 before any cut, k after the k-th.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.analysis.structure import TokenSpace


@dataclass(frozen=True)
class Run:
    """Consecutive parts [first, last) of the token space."""

    first: int
    last: int

    def patches(self, space: TokenSpace) -> bool:
        """Whether the patches are among them."""
        return self.first <= space.patch < self.last

    def size(self, space: TokenSpace, count: int) -> int:
        """Tokens in the run when `count` patch tokens are left."""
        sizes = (count if i == space.patch else space.pieces[i].size
                 for i in range(self.first, self.last))  # fmt: skip
        return sum(sizes)


@dataclass(frozen=True)
class Dim:
    """A dim as factor × (batch) × (tokens of a run)."""

    factor: int
    batch: bool
    run: Run | None

    def size(self, space: TokenSpace, count: int, batch: int) -> int:
        tokens = self.run.size(space, count) if self.run else 1
        return self.factor * tokens * (batch if self.batch else 1)


def locate(axis: Axis, space: TokenSpace) -> Dim | None:
    """Express an axis in terms of the token space; None where it cuts through it."""
    factor, batch, run = 1, False, None
    inside = ax.roots(space.axis)
    i = 0
    while i < len(axis):
        digit = axis[i]
        found = _match(axis[i:], space)
        if found is not None:
            if run is not None:
                return None
            run, width = found
            i += width
            continue
        if digit.root in inside or any(r in inside for r in ax.roots((digit,))):
            return None
        if digit.root.kind == "batch":
            batch = True
        else:
            factor *= digit.size
        i += 1
    return Dim(factor, batch, run)


def _match(axis: Axis, space: TokenSpace) -> tuple[Run, int] | None:
    """The run that the head of the axis spells, and how many digits it takes."""
    width = len(space.axis)
    if axis[:width] == space.axis:
        return Run(0, len(space.pieces)), width
    head = axis[0]
    if head.whole and head.root.pieces:
        parts = head.root.pieces
        for first in range(len(space.pieces) - len(parts) + 1):
            if space.pieces[first : first + len(parts)] == parts:
                return Run(first, first + len(parts)), 1
    for i, piece in enumerate(space.pieces):
        width = len(piece.axis)
        if piece.full and axis[:width] == piece.axis and width:
            return Run(i, i + 1), width
    return None


@dataclass(frozen=True)
class SetShape:
    """Reshape or Expand: new target dims."""

    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class SetSlice:
    """Slice along tokens: take `part` of `whole`."""

    axis: int
    whole: Run
    part: Run


@dataclass(frozen=True)
class SetSplit:
    """Split along tokens into these runs."""

    parts: tuple[Run, ...]


@dataclass(frozen=True)
class SetGather:
    """Gather of fixed positions, or of a run, along tokens."""

    whole: Run
    part: Run | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """Operand `operand` is a side input with token axes: gather them. (axis, run) each."""

    operand: int
    axes: tuple[tuple[int, Run], ...]


@dataclass(frozen=True)
class Pool:
    """Mean or sum over the tokens of `run` along `axis`: weigh by size after merging."""

    axis: int
    run: Run


@dataclass(frozen=True)
class Bias:
    """The softmax of an attention whose keys were reduced: add log size after merging."""

    attention: Attention


Edit: TypeAlias = SetShape | SetSlice | SetSplit | SetGather | Side | Pool | Bias


@dataclass(frozen=True)
class Barrier:
    """Why tokens may not have left upstream of this node."""

    node: str
    op: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}' {self.why}"


@dataclass
class Effects:
    """What a walk found.

    Attributes:
        edits: by node name.
        stage: of every tensor that carries patches, where not 0.
        node_stage: of the inputs of every node, where not 0.
        dims: of every tensor after the first cut.
        barriers, merge_barriers: in execution order.
    """

    edits: dict[str, list[Edit]] = field(default_factory=dict)
    stage: dict[str, int] = field(default_factory=dict)
    node_stage: dict[str, int] = field(default_factory=dict)
    dims: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    barriers: list[Barrier] = field(default_factory=list)
    merge_barriers: list[Barrier] = field(default_factory=list)
