"""The size of every axis once the image has another one.

An index set that comes from rows or columns of the image has another number of positions; a product
of digits, and a concatenation, has what its parts have. Where a digit was split off (windows, 2×2
groups), the inner part keeps its size and the outer one follows.
"""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis, Digit, Root
from tcompile.analysis.facts import Facts
from tcompile.core.errors import ModelError
from tcompile.core.graph import int_to_dim


class GridError(ModelError):
    """The model cannot be had on another grid.

    Attributes:
        reached: how many nodes could follow.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", reached: int = -1) -> None:
        super().__init__(what, where=where, hint=hint)
        self.reached = reached


def shown(sizes: tuple[int, ...]) -> str:
    """For messages: 12 × 12."""
    return " × ".join(str(int_to_dim(n)) for n in sizes)


class Sizes:
    """Grows as the graph is followed from its inputs on.

    Attributes:
        roots: index set → how many positions it has now; of those that a node introduced.
        units: index set → the stride of the patches in it, where these are cut by reshaping.
    """

    def __init__(self, facts: Facts, patches: Axis) -> None:
        self.facts = facts
        self.units = {d.root: d.stride for d in patches}
        self.roots: dict[Root, int] = {}
        self._known: dict[Root, int] = {}

    def of_root(self, root: Root) -> int:
        """The positions of an index set now."""
        if root in self.roots:
            return self.roots[root]
        if root not in self._known:
            self._known[root] = root.size  # while it is looked for
            self._known[root] = self._of_root(root)
        return self._known[root]

    def _of_root(self, root: Root) -> int:
        parts = root.pieces
        if parts:
            return sum(self.of_interval(p) for p in parts)
        if root.kind == "untracked":
            met = (a for a in self.facts.met.get(root, ()) if ax.size(a) == root.size)
            sizes = {self.of(a) for a in met if self.changes(a)}
            if len(sizes) == 1:
                return sizes.pop()
        return root.size

    def of_interval(self, part: ax.Interval) -> int:
        """The positions of a part of an axis now."""
        if not self.changes(part.axis):
            return part.size
        if not part.full:
            raise GridError(
                f"takes positions {part.start} to {part.stop} of {ax.show(part.axis)} by number, "
                "which are others on another grid"
            )
        return self.of(part.axis)

    def of_digit(self, digit: Digit) -> int:
        """The positions of a digit now: the outermost one of an index set follows its size."""
        now, top = self.of_root(digit.root), digit.stride * digit.size
        if now == digit.root.size or top < digit.root.size:
            return digit.size
        if now % digit.stride:
            raise GridError(
                f"{now} positions do not fall into groups of {digit.stride}, which "
                f"{digit.root.size} do"
            )
        return now // digit.stride

    def of(self, axis: Axis) -> int:
        """The positions of an axis now."""
        return prod(self.of_digit(d) for d in axis)

    def changes(self, axis: Axis) -> bool:
        """Return whether the positions of the axis are others now."""
        return any(self.of_digit(d) != d.size for d in axis)

    def dims(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """The dims of a tensor now, free ones by the prime that stands for them."""
        return tuple(map(self.of, self.facts.of(tensor)))

    def touched(self, tensor: gs.Tensor) -> bool:
        """Return whether a tensor has other dims now."""
        return any(map(self.changes, self.facts.of(tensor)))

    def introduce(self, tensor: gs.Tensor, dims: tuple[int, ...], node: gs.Node) -> None:
        """Let index sets that begin at a tensor have so many positions.

        Raises:
            GridError: what it has by its axes is something else.
        """
        for axis, now in zip(self.facts.of(tensor), dims, strict=True):
            if len(axis) == 1 and axis[0].whole and self._begins(axis[0].root):
                self.roots[axis[0].root] = now
            elif self.of(axis) != now:
                raise GridError(
                    f"{node.op} '{node.name}' would give {now} positions where "
                    f"{self.of(axis)} are wanted"
                )

    def _begins(self, root: Root) -> bool:
        return not root.pieces and root not in self.roots and root.kind != "untracked"
