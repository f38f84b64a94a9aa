"""Facts of every tensor: the axes that its dims run over, and what it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.core.graph import free_factors, free_size, shape

#: (tensor, axis, size) of the axes that a stored number was computed from.
Origin: TypeAlias = frozenset[tuple[str, int, int]]
#: The axes of each output of a node, or None where they cannot be told.
Result: TypeAlias = list[Axes] | None


def free_axis(name: str, dim: int, kind: ax.Kind) -> ax.Axis:
    """The axis of a dim with free batches in it: these first, then what is left of it."""
    names, rest = free_factors(dim)
    batches = [ax.new(n, free_size(n), "batch") for n in names]
    return tuple(d for axis in (*batches, ax.new(name, rest, kind)) for d in axis)


@dataclass
class Facts:
    """The facts that are known of every tensor, by name.

    Attributes:
        axes: the axis of each dim.
        live: tensors whose value depends on a graph input.
        opaque: tensors whose axes were lost, with the node that lost them and why.
        conflicts: node name → how two claims of its operands contradict each other.
        preferred: index sets of the tokens. What is joined with them position by position but comes
            from elsewhere (a mask made from the image) takes their meaning.
        written: nodes that an earlier rewrite wrote for other tokens, where joining two of their
            axes is not a contradiction.
        permuted: index set that a Gather made by putting an axis in another order → that axis, and
            which of its positions each new one is.
        unrotated: rotary table → what a token without a position reads of it.
        imaged: tensors whose value depends on an image, and not only on a mask or a size beside it.
        met: index set of features → the axes of tokens or batch that it was joined with, position
            by position.
        alike: pairs of index sets of masks that were joined with each other, position by position.
        sized: stored number → what it was computed from.
        origin: index set that a node made by taking positions of others → those others.
        picked: index set that a node made by computed indices into tokens, or by putting them in
            another order → that node, how many it picks, and of how many.
        lost: index set of a dim that nothing is known of → why not, and from which node on.
    """

    axes: dict[str, Axes] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    opaque: dict[str, str] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    preferred: frozenset[ax.Root] = frozenset()
    written: frozenset[str] = frozenset()
    permuted: dict[ax.Root, tuple[ax.Axis, tuple[int, ...]]] = field(default_factory=dict)
    unrotated: dict[str, float] = field(default_factory=dict)
    imaged: set[str] = field(default_factory=set)
    sized: Mapping[str, Origin] = field(default_factory=dict)
    met: dict[ax.Root, set[ax.Axis]] = field(default_factory=dict)
    alike: set[tuple[ax.Root, ax.Root]] = field(default_factory=set)
    origin: dict[ax.Root, set[ax.Root]] = field(default_factory=dict)
    picked: dict[ax.Root, tuple[str, int, int]] = field(default_factory=dict)
    lost: dict[ax.Root, str] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> Axes:
        """Axes of a tensor; those of a constant are untracked."""
        known = self.axes.get(tensor.name)
        if known is None:
            known = tuple(
                ax.new(f"{tensor.name}/{i}", d, "untracked") for i, d in enumerate(shape(tensor))
            )
            self.axes[tensor.name] = known
        return known

    def is_live(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self.live

    def unify(self, node: gs.Node, a: ax.Axis, b: ax.Axis) -> ax.Axis:
        """Elementwise: the common axis; a contradiction is recorded."""
        axis, conflict = ax.unify(a, b)
        if a != b and not (ax.tracked(a) or ax.tracked(b)) and ax.size(a) == ax.size(b) > 1:
            return self._beside(a, b, axis)
        for mine, other in ((a, b), (b, a)):
            loose = len(mine) == 1 and mine[0].whole and not ax.tracked(mine)
            if loose and ax.tracked(other) and ax.size(mine) == ax.size(other):
                self.met.setdefault(mine[0].root, set()).add(other)
        if conflict and self.preferred:
            foreign = [not self._of_tokens(ax.roots(x)) for x in (a, b)]
            if foreign[0] != foreign[1]:
                return b if foreign[0] else a
            if all(foreign) and node.name in self.written:
                return axis
        if conflict:
            same = self.origins(ax.roots(a)) & self.origins(ax.roots(b))
            mixed = any(r in self.permuted for x in (a, b) for r in ax.roots(x))
            mixed = mixed or any(r.kind == "data" for r in same)
            self.conflicts[node.name] = (
                "joins tokens with tokens in another order"
                if mixed
                else f"joins axes that contradict each other: {ax.show(a)} against {ax.show(b)}"
            )
        return axis

    def _beside(self, a: ax.Axis, b: ax.Axis, axis: ax.Axis) -> ax.Axis:
        """Two axes without a meaning yet: that of a mask, which may still get one, outlives that of
        a constant, and those of two masks are one."""
        own = [
            x
            for x in (a, b)
            if len(x) == 1 and x[0].whole and x[0].root.name.rpartition("/")[0] in self.live
        ]
        if len(own) == 2:
            self.alike.add((own[0][0].root, own[1][0].root))
        return own[-1] if own else axis

    def origins(self, roots: Iterable[ax.Root]) -> set[ax.Root]:
        """Index sets, and all that their positions were taken from."""
        found: set[ax.Root] = set()
        pending = list(roots)
        while pending:
            root = pending.pop()
            if root not in found:
                found.add(root)
                pending += self.origin.get(root, ())
        return found

    def _of_tokens(self, roots: set[ax.Root]) -> bool:
        """Return whether some of the index sets are tokens, or positions taken from them."""
        return any(
            root in self.preferred or self._of_tokens(self.origin.get(root, set()))
            for root in roots
        )
