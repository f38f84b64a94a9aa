"""The state that edits share: what they look at in the dense graph, and what they have written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import effects as fx
from tcompile.analysis.axes import Axes
from tcompile.analysis.count_state import Counts
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import Order, TokenSpace
from tcompile.analysis.token_dims import Dim, is_rest, locate
from tcompile.core.graph import BATCH, dim_to_int
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.gather_rows import Mover
from tcompile.passes.reduce.token_state import TokenState, index_on_run


@dataclass
class Editor:
    """State of a rewrite downstream of a cut.

    Attributes:
        batch: literal batch, or None when it is free.
        facts: of the dense graph.
        dense_inputs: node → names of its inputs in the dense graph.
        counts: what grows with the number of tokens there.
        first: the dim of the batch.
        biased: `Attention` nodes that were given log sizes.
        current: dense name → the tensor that stands for it now.
        owners: the tokens with the owners that a row is given back by, where they are not the
            reducers' own.
        whole: gives the tensor of a dense name with every token, where rows are not copies of one
            kept token's; None: they are.
    """

    b: Builder
    space: TokenSpace
    batch: int | None
    facts: Facts
    dense_inputs: dict[str, list[str]]
    counts: Counts
    first: int | str = BATCH
    biased: set[str] = field(default_factory=set)
    current: dict[str, gs.Tensor] = field(default_factory=dict)
    owners: Callable[[TokenState], TokenState] = lambda state: state
    whole: Callable[[str], gs.Tensor] | None = None

    def moved(
        self,
        tensor: gs.Tensor,
        result: Axes,
        places: Sequence[fx.SideAxis],
        indices: Sequence[gs.Tensor],
        counts: Sequence[int],
        dims: Sequence[int],
    ) -> gs.Tensor:
        """`Mover.gather`, told how many rows each index takes."""
        lengths = {i.name: n for i, n in zip(indices, counts, strict=True)}
        return Mover(self.b, self.batch, lengths).gather(tensor, result, places, indices, dims)

    def left(
        self, tensor: gs.Tensor, axes: Axes, places: Sequence[fx.SideAxis], stage: TokenState
    ) -> gs.Tensor:
        """Rows of a tensor with every token: those of the tokens that are left."""
        indices = [self.index_at(p, stage) for p in places]
        counts = [self.size_at(p, stage.count) for p in places]
        return self.moved(tensor, axes, places, indices, counts, literal_dims(tensor))

    def size_at(self, place: fx.SideAxis, count: int) -> int:
        """The number of rows of an axis when `count` patches are left."""
        dim = Dim(1, False, place.run, place.part, others=place.others)
        return dim.size(self.space, count, 1)

    def index_at(self, place: fx.SideAxis, stage: TokenState) -> gs.Tensor:
        """[B, n] the rows of an axis that are left: of tokens, and of what stands beside them."""
        b, (before, behind) = self.b, place.others
        index = index_on_run(b, self.space, stage, place.run, place.part)
        if place.others == (0, 0):
            return index
        last = self.size_at(place, self.space.patches) - behind
        first = b.slice(index, 1, 0, 1, fp32=False)
        none = b.op("Sub", first, first, dtype=np.int64, fp32=False)
        parts = [
            b.op("Add", none, np.arange(start, start + n)[None], dtype=np.int64, fp32=False)
            for start, n in ((0, before), (last, behind))
        ]
        moved = b.op("Add", index, np.asarray([before]), dtype=np.int64, fp32=False)
        kept = [parts[0]] * bool(before) + [moved] + [parts[1]] * bool(behind)
        return b.concat(kept, 1, fp32=False)

    def batch_axis(self, name: str) -> int | None:
        """The axis of a dense tensor that is exactly the batch of the tokens, or None."""
        size = dim_to_int(self.first)
        for i, axis in enumerate(self.facts.axes[name]):
            if len(axis) == 1 and axis[0].root.kind == "batch" and axis[0].root.size == size:
                return i
        return None

    def order(self, name: str) -> Order:
        """The order of that name."""
        return next(o for o in self.space.orders.values() if o.name == name)

    def token_axes(self, axes: Axes) -> list[fx.SideAxis]:
        """The axes of a dense tensor that hold patches, the first where a grid has several."""
        return [
            fx.SideAxis(i, d.run, d.part, others=d.others)
            for i, d in enumerate(locate(axes, self.space))
            if d is not None and d.run is not None and not is_rest(d)
            if d.has_patches(self.space)
        ]


def literal_dims(tensor: gs.Tensor) -> list[int]:
    """The dims of a tensor, those with a free batch as 0."""
    return [0 if isinstance(d, str) else int(d) for d in tensor.shape]
