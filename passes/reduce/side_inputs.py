"""Rows of tensors beside the stream: side inputs gathered, tokens given back, other orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import effects as fx
from tcompile.analysis.count_state import Counts
from tcompile.analysis.facts import Facts
from tcompile.analysis.space import Order, TokenSpace
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import BATCH, dim_to_int, int_to_dim
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.gather_rows import Mover, regroup
from tcompile.passes.reduce.token_state import (
    TokenState,
    in_order,
    index_on_run,
    owner_in_order,
    owner_on_run,
)


@dataclass
class Rows:
    """What edits look at, and the edits that move rows of tensors.

    Attributes:
        batch: literal batch, or None when it is free.
        first: its dim.
        facts: of the dense graph.
        dense_inputs: node → names of its inputs in the dense graph.
        counts: what grows with the number of tokens there.
        biased: `Attention` nodes that were given log sizes.
        current: dense name → the tensor that stands for it now.
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

    def moved(
        self,
        tensor: gs.Tensor,
        result: ax.Axes,
        places: Sequence[fx.SideAxis],
        indices: Sequence[gs.Tensor],
        counts: Sequence[int],
        dims: Sequence[int],
    ) -> gs.Tensor:
        """`Mover.gather`, told how many rows each index takes."""
        lengths = {i.name: n for i, n in zip(indices, counts, strict=True)}
        return Mover(self.b, self.batch, lengths).gather(tensor, result, places, indices, dims)

    def batch_axis(self, name: str) -> int | None:
        """The axis of a dense tensor that is exactly the batch of the tokens, or None."""
        size = dim_to_int(self.first)
        for i, axis in enumerate(self.facts.axes[name]):
            if len(axis) == 1 and axis[0].root.kind == "batch" and axis[0].root.size == size:
                return i
        return None

    # -- side inputs -----------------------------------------------------------------------------

    def _side(self, node: gs.Node, edit: fx.Side, stage: TokenState) -> None:
        tensor = node.inputs[edit.operand]
        if not stage.positioned and edit.fill is None:
            raise UsageError(
                f"a fused token has no row in the side input '{tensor.name}' of "
                f"{node.op} '{node.name}'",
                where="--method",
                hint="use a method without fused tokens, such as topk",
            )
        # The mask of an Attention meets its logits [B, h, rows, columns], not its output.
        to_logits = node.op == "Attention"
        rank = 4 if to_logits else len(node.outputs[0].shape)
        batch_axis = 0 if to_logits else self.batch_axis(node.outputs[0].name)
        axes = self.facts.axes[node.outputs[0].name]
        if to_logits:
            # [B, h, rows, columns]; nothing else of them matters here.
            query = self.facts.axes[self.dense_inputs[node.name][0]]
            heads = query[1] if len(query) == 4 else ax.ONE
            axes = (query[0], heads, ax.ONE, ax.ONE)
        key = f"side/{tensor.name}/{edit.axes}/{rank}/{axes[:2]}/{edit.fill}"
        if key not in stage.cache:
            stage.cache[key] = self._gathered(tensor, edit, stage, axes)
            # Scores that recompute rows of an attention must see whether a table has rows.
            stage.cache[key].shape = self._gathered_shape(tensor, edit, stage, rank, batch_axis)
        node.inputs[edit.operand] = stage.cache[key]

    def _gathered(
        self, tensor: gs.Tensor, edit: fx.Side, stage: TokenState, axes: ax.Axes
    ) -> gs.Tensor:
        places = edit.axes
        indices = [index_on_run(self.b, self.space, stage, p.run, p.part) for p in places]
        dims = [0 if isinstance(d, str) else int(d) for d in tensor.shape]
        if edit.fill is not None and not stage.positioned:
            tensor, indices = self._with_own_row(tensor, places[0], indices[0], edit.fill)
            dims[places[0].axis] += 1
        counts = [fx.Dim(1, False, p.run, p.part).size(self.space, stage.count, 1) for p in places]
        return self.moved(tensor, axes, places, indices, counts, dims)

    def _with_own_row(
        self, tensor: gs.Tensor, place: fx.SideAxis, index: gs.Tensor, fill: float
    ) -> tuple[gs.Tensor, list[gs.Tensor]]:
        """A table with one more row, which a fused token (index −1) reads."""
        table = np.asarray(tensor.values)
        row = np.full_like(table.take([0], place.axis), fill)
        longer = gs.Constant(self.b.name("table"), np.concatenate([table, row], place.axis))
        missing = self.b.op("Less", index, [0], dtype=np.bool_)
        last = self.b.const([table.shape[place.axis]])
        return longer, [self.b.op("Where", missing, last, index, dtype=np.int64)]

    def _gathered_shape(
        self, tensor: gs.Tensor, edit: fx.Side, stage: TokenState, rank: int, batch_axis: int | None
    ) -> list[int | str]:
        missing = 0 if self.batch == 1 else rank - len(tensor.shape)
        dims: list[int | str] = [1] * missing + list(tensor.shape)
        for place in edit.axes:
            dim = fx.Dim(1, False, place.run, place.part)
            first = place.axis + missing
            dims[first] = dim.size(self.space, stage.count, 1)
            dims[first + 1 : first + place.span] = [1] * (place.span - 1)
        if self.batch != 1 and batch_axis is not None:
            dims[batch_axis] = self.first
        return dims

    # -- every token again, and groups of them ----------------------------------------------------

    def _restore(self, node: gs.Node, edit: fx.Restore, stage: TokenState) -> None:
        tensor = node.inputs[edit.operand]
        key = f"restored/{tensor.name}"
        if key not in stage.cache:
            stage.cache[key] = self.restored(
                tensor, self.dense_inputs[node.name][edit.operand], stage
            )
        node.inputs[edit.operand] = stage.cache[key]

    def restored(self, tensor: gs.Tensor, name: str, stage: TokenState) -> gs.Tensor:
        """A row for every dense token: that of its owner.

        Args:
            name: what the tensor is called in the dense graph.
        """
        axes = self.facts.axes[name]
        dims = fx.locate(axes, self.space)
        sizes = [int(ax.size(a)) for a in axes]
        free = [i for i, a in enumerate(axes) if ax.has_batch(a)]
        found = [
            i
            for i, d in enumerate(dims)
            if d and d.run and d.part != "rest" and d.run.has_patches(self.space)
        ]
        dim = dims[found[0]] if len(found) == 1 else None
        if dim is None or dim.run is None or dim.batch or dim.factor != 1:
            raise ModelError(f"'{name}' cannot get every token back: its layout is not known")
        span = 1
        while found[0] + span < len(dims) and _rest(dims[found[0] + span]):
            span += 1
        place = fx.SideAxis(found[0], dim.run, dim.part)
        if dim.order:
            order = self.order(dim.order)
            owner = owner_in_order(self.b, self.space, stage, dim.run, order)
        else:
            owner = owner_on_run(self.b, self.space, stage, dim.run, dim.part)
        now = [0 if i in free else n for i, n in enumerate(sizes)]
        now[found[0]] = dim.size(self.space, stage.count, 1)
        now[found[0] + 1 : found[0] + span] = [1] * (span - 1)
        count = dim.size(self.space, self.space.patches, 1)
        full = self.moved(tensor, axes, [place], [owner], [count], now)
        if span > 1:
            goal = [-1 if i in free and self.batch is None else n for i, n in enumerate(sizes)]
            full = self.b.reshape(full, goal, fp32=False)
        full.shape = [int_to_dim(n) for n in sizes]
        return full

    def order(self, name: str) -> Order:
        """The order of that name."""
        return next(o for o in self.space.orders.values() if o.name == name)

    def _reorder(self, node: gs.Node, edit: fx.Reorder, stage: TokenState) -> None:
        """Those that are left, in the order that the node puts all of them in."""
        source = node.inputs[0]
        _, now = in_order(self.b, self.space, stage, edit.run, edit.order)
        part: fx.Part = "groups" if edit.order.groups else "tokens"
        place = fx.SideAxis(edit.axis, edit.run, part)
        axes = self.facts.axes[self.dense_inputs[node.name][0]]
        count = fx.Dim(1, False, edit.run, part).size(self.space, stage.count, 1)
        dims = [0 if ax.has_batch(a) else int(ax.size(a)) for a in axes]
        dims[edit.axis] = count
        moved = self.moved(source, axes, [place], [now], [count], dims)
        node.op, node.attrs, node.inputs = "Identity", {}, [moved]

    def taken(
        self, tensor: gs.Tensor, name: str, place: fx.SideAxis, index: gs.Tensor, count: int
    ) -> gs.Tensor:
        """Rows of a dense tensor at `place` taken by `index` [B, n]; `name` as for `restored`.

        Args:
            count: patches that are left.
        """
        axes = self.facts.axes[name]
        dims = [0 if isinstance(d, str) else int(d) for d in tensor.shape]
        count = fx.Dim(1, False, place.run, place.part).size(self.space, count, 1)
        return self.moved(tensor, axes, [place], [index], [count], dims)

    def _regroup(self, node: gs.Node, edit: fx.Regroup, stage: TokenState) -> None:
        name = node.outputs[0].name
        source = self.current[edit.source]
        axes = (self.facts.axes[edit.source], self.facts.axes[name])
        batch = self.batch or -1
        dims = [
            d.size(self.space, stage.count, 1) if d else 0 for d in fx.locate(axes[1], self.space)
        ]
        dims = [
            -1
            if self.batch is None and ax.has_batch(a)
            else n * ((self.batch or 1) if ax.has_batch(a) else 1)
            for n, a in zip(dims, axes[1], strict=True)
        ]
        grouping = self.space.grouping
        groups = stage.count // (grouping.members if grouping else 1)
        regroup(self.b, node, source, axes, self.space, dims, groups, batch, edit.pool)


def _rest(dim: fx.Dim | None) -> bool:
    return dim is not None and dim.part == "rest"
