"""What the analysis knows of every tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.ir import shape

#: The axes of each output of a node, or None where they cannot be told.
Result: TypeAlias = list[Axes] | None


@dataclass
class Facts:
    """What is known of every tensor, by name.

    Attributes:
        axes: the axis of each dim.
        live: tensors whose value depends on a graph input.
        opaque: tensors whose axes were lost, with the node that lost them and why.
        conflicts: node name → the two claims that contradict each other.
        preferred: index sets of the tokens. What is joined with them position by position but comes
            from elsewhere (a mask made from the image) takes their meaning.
        written: nodes that an earlier rewrite wrote for other tokens, where joining two of their
            axes is no contradiction.
        permuted: index set that a Gather made by putting an axis in another order → that axis, and
            which of its positions each new one is.
        unrotated: rotary table → what a token without a position reads of it.
    """

    axes: dict[str, Axes] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    opaque: dict[str, str] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    preferred: frozenset[ax.Root] = frozenset()
    written: frozenset[str] = frozenset()
    permuted: dict[ax.Root, tuple[ax.Axis, tuple[int, ...]]] = field(default_factory=dict)
    unrotated: dict[str, float] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> Axes:
        """Axes of a tensor; those of a constant are weak."""
        known = self.axes.get(tensor.name)
        if known is None:
            known = tuple(
                ax.new(f"{tensor.name}/{i}", d, "weak") for i, d in enumerate(shape(tensor))
            )
            self.axes[tensor.name] = known
        return known

    def is_live(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self.live

    def unify(self, node: gs.Node, a: ax.Axis, b: ax.Axis) -> ax.Axis:
        """Elementwise: the common axis; a contradiction is recorded."""
        axis, conflict = ax.unify(a, b)
        if conflict and self.preferred:
            foreign = [not ax.roots(x) & self.preferred for x in (a, b)]
            if foreign[0] != foreign[1]:
                return b if foreign[0] else a
            if all(foreign) and node.name in self.written:
                return axis
        if conflict:
            self.conflicts[node.name] = f"{ax.show(a)} against {ax.show(b)}"
        return axis
