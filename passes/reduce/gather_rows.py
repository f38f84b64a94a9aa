"""Taking rows of tensors along their token axes, whatever the layout; merging of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes, Digit
from tcompile.analysis.effects import SideAxis
from tcompile.analysis.space import Grouping, TokenSpace
from tcompile.analysis.token_dims import Dim, Layout, locate
from tcompile.core.errors import InternalError, ModelError
from tcompile.core.graph import one_image
from tcompile.passes.reduce.builder import Builder


def to_rows(b: Builder, stream: gs.Tensor, layout: Layout, count: int) -> gs.Tensor:
    """A stream as [B, tokens, C]; `count` tokens, fixed ones included."""
    x = b.transpose(stream, layout.order, fp32=False)
    width = int(stream.shape[layout.features])
    if layout.batch is None:
        return b.reshape(x, [1, count, width], fp32=False)
    return x if len(layout.tokens) == 1 else b.reshape(x, [0, count, width], fp32=False)


def from_rows(
    b: Builder, rows: gs.Tensor, layout: Layout, dims: Sequence[int], width: int
) -> gs.Tensor:
    """The inverse of `to_rows`; `dims` are the sizes of the token axes."""
    x = rows
    if layout.batch is None:
        x = b.reshape(x, [*dims, width], fp32=False)
    elif len(layout.tokens) > 1:
        x = b.reshape(x, [0, *dims, width], fp32=False)
    order = layout.order
    return b.transpose(x, [order.index(i) for i in range(len(order))], fp32=False)


@dataclass(frozen=True)
class Mover:
    """Gathers along token axes.

    Attributes:
        batch: literal batch, or None when it is free.
        counts: how many rows each index takes, by its name.
    """

    b: Builder
    batch: int | None
    counts: dict[str, int] = field(default_factory=dict)

    def gather(
        self,
        tensor: gs.Tensor,
        result: Axes,
        places: Sequence[SideAxis],
        indices: Sequence[gs.Tensor],
        dims: Sequence[int],
    ) -> gs.Tensor:
        """Rows of `tensor` at `places` taken by `indices` [B, m] each.

        Args:
            result: the axes that it is broadcast to.
            dims: sizes of the tensor; batch dims count as 0 (as they are).

        Raises:
            ModelError: the batch is merged with other axes, so that samples cannot differ.
        """
        b = self.b
        x = tensor
        if any(p.span > 1 for p in places):
            flat = list(dims)
            for p in places:
                total = int(np.prod(flat[p.axis : p.axis + p.span]))
                flat[p.axis : p.axis + p.span] = [total] + [1] * (p.span - 1)
            x = b.reshape(x, flat, fp32=False)
        if self.batch == 1:
            for p, index in zip(places, indices, strict=True):
                row = b.reshape(index, [-1], fp32=False)
                x = b.op("Gather", x, row, dtype=x.dtype, axis=p.axis, fp32=False)
            return x
        batches = {d.root.name for a in result for d in a if d.root.kind == "batch"}
        if len(batches) > 1:
            raise ModelError(
                f"'{tensor.name}' has tokens for each pair of {' and '.join(sorted(batches))}, so "
                "which of them are kept has two answers",
                hint="fix the batch of one of the inputs",
            )
        alone = [i for i, a in enumerate(result) if len(a) == 1 and a[0].root.kind == "batch"]
        if alone:
            return self._per_sample(x, dims, places, indices, len(result), alone[0])
        merged = [i for i, a in enumerate(result) if a and a[0].root.kind == "batch"]
        if len(merged) != 1 or any(d.root.kind != "untracked" for d in result[merged[0]][1:]):
            raise ModelError(
                f"'{tensor.name}' merges the batch with another axis, so each image cannot have "
                "tokens of its own there",
                hint=one_image(self.b.graph),
            )
        heads = ax.size(result[merged[0]][1:])
        return self._per_head(x, dims, places, indices, len(result), (merged[0], heads))

    def _per_head(
        self,
        x: gs.Tensor,
        dims: Sequence[int],
        places: Sequence[SideAxis],
        indices: Sequence[gs.Tensor],
        rank: int,
        merged: tuple[int, int],
    ) -> gs.Tensor:
        """Split an axis of batch and heads, gather, and join the two again."""
        b, (axis, heads) = self.b, merged
        own = axis - (rank - len(dims))
        split = list(dims)
        shared = own < 0 or dims[own] == 1
        if own >= 0:
            split[own : own + 1] = [1, 1] if shared else [self.batch or -1, heads]
            x = b.reshape(x, [n if n or i < own else 0 for i, n in enumerate(split)], fp32=False)
        split = [0 if n == -1 else n for n in split]
        moved = [replace(p, axis=p.axis + (p.axis > own >= 0)) for p in places]
        x = self._per_sample(x, split, moved, indices, rank + 1, axis)
        if shared:
            ones = [heads if i == axis + 1 else 1 for i in range(rank + 1)]
            x = b.op("Add", x, b.const(np.zeros(ones), x.dtype or np.float32), dtype=x.dtype)
        order = [0] * axis + [-1]
        sizes = self._sizes(split, moved, indices, rank + 1)
        return b.reshape(x, [*order, *sizes[axis + 2 :]], fp32=False)

    def _sizes(
        self,
        dims: Sequence[int],
        places: Sequence[SideAxis],
        indices: Sequence[gs.Tensor],
        rank: int,
    ) -> list[int]:
        """Sizes after gathering; the gathered ones from the counts given."""
        found = [1] * (rank - len(dims)) + list(dims)
        for p, index in zip(places, indices, strict=True):
            found[p.axis + rank - len(dims)] = self.counts[index.name]
        return found

    def _per_sample(
        self,
        x: gs.Tensor,
        dims: Sequence[int],
        places: Sequence[SideAxis],
        indices: Sequence[gs.Tensor],
        rank: int,
        batch_axis: int,
    ) -> gs.Tensor:
        b = self.b
        missing = rank - len(dims)
        shared = batch_axis < missing or dims[batch_axis - missing] == 1
        x = b.unsqueeze(x, *range(missing), fp32=False) if missing else x
        todo = [(p.axis + missing, i) for p, i in zip(places, indices, strict=True)]
        order = list(range(rank))

        def arrange(wanted: list[int], x: gs.Tensor) -> gs.Tensor:
            moved = b.transpose(x, [order.index(i) for i in wanted], fp32=False)
            order[:] = wanted
            return moved

        if shared:
            # One table for all samples: [n, rest] gathered by [B, K] → [B, K, rest].
            (first, index), *todo = todo
            rest = [i for i in range(rank) if i not in (first, batch_axis)]
            x = b.squeeze(arrange([batch_axis, first, *rest], x), 0, fp32=False)
            x = b.op("Gather", x, index, dtype=x.dtype, axis=0, fp32=False)
        for axis, index in todo:
            # [B, n, rest] gathered by [B, K, 1] with the batch in step.
            x = arrange([batch_axis, axis, *(i for i in order if i not in (batch_axis, axis))], x)
            column = b.unsqueeze(index, 2, fp32=False)
            x = b.op("GatherND", x, column, dtype=x.dtype, batch_dims=1, fp32=False)
        return arrange(list(range(rank)), x)


def regroup(
    b: Builder,
    node: gs.Node,
    source: gs.Tensor,
    axes: tuple[Axes, Axes],
    space: TokenSpace,
    dims: Sequence[int],
    groups: int,
    batch: int,
    pool: str,
) -> None:
    """Let `node`, the end of a region of views, rearrange `source` in one go.

    Args:
        axes: of the source and of the node's output, in the dense graph.
        dims: the output's new sizes, −1 for a free batch.
        groups: how many are left.
        batch: its size, −1 where it is free.
        pool: `mean` or `max` over the members that the output no longer has.
    """
    grouping = space.grouping
    if grouping is None:
        raise InternalError("a region of views without groups", where=node.name)
    have = _atoms(axes[0], axes[1], space, grouping)
    want = _atoms(axes[1], axes[0], space, grouping)
    gone = [a for a in have if a not in want]
    if set(want) - set(have) or (gone and not pool):
        raise InternalError("views that do more than rearrange tokens", where=node.name)

    def length(atom: Digit | str) -> int:
        if isinstance(atom, str):
            return groups
        return batch if atom.root.kind == "batch" else atom.size

    x = b.reshape(source, [length(a) for a in have], fp32=False)
    x = b.transpose(x, [have.index(a) for a in (*want, *gone)], fp32=False)
    if pool:
        over = list(range(len(want), len(want) + len(gone)))
        x = b.reduce({"mean": "Mean", "max": "Max"}[pool], x, over)
    node.op, node.attrs, node.domain = "Reshape", {}, None
    node.inputs = [x, b.const(list(dims))]


def _atoms(axes: Axes, other: Axes, space: TokenSpace, grouping: Grouping) -> list[Digit | str]:
    """The digits of a tensor split as finely as the other tensor needs; groups are one atom."""
    inner = set(grouping.inner)
    found: list[Digit | str] = []
    flat = [d for axis in _marked(axes, space, grouping) for d in axis]
    cuts = [d for axis in _marked(other, space, grouping) for d in axis if isinstance(d, Digit)]
    for digit in flat:
        if isinstance(digit, str) or digit in inner:
            found.append(digit)
            continue
        low, high = digit.stride, digit.stride * digit.size
        marks = {low, high}
        for cut in cuts:
            if cut.root == digit.root:
                marks |= {m for m in (cut.stride, cut.stride * cut.size) if low < m < high}
        steps = sorted(marks, reverse=True)
        found += [Digit(digit.root, s, t // s) for t, s in pairwise(steps)]
    return [a for a in found if isinstance(a, str) or a.size > 1 or a.root.kind == "batch"]


def _marked(axes: Axes, space: TokenSpace, grouping: Grouping) -> list[list[Digit | str]]:
    """Each axis as digits, the patches as `groups` and the members' digits."""
    roots = {d.root for d in space.whole_patches or ()}
    found: list[list[Digit | str]] = []
    for axis, dim in zip(axes, locate(axes, space), strict=True):
        out: list[Digit | str] = []
        held = isinstance(dim, Dim) and dim.run is not None
        rest = isinstance(dim, Dim) and dim.part == "rest"
        done = not held or rest
        for digit in axis:
            if digit in out:  # a member that came with its group
                continue
            if not held or digit.root not in roots or (digit in grouping.inner and not rest):
                out.append(digit)
            elif not done:
                out.append("groups")
                out += grouping.inner if dim and dim.part == "tokens" else ()
                done = True
        found.append(out)
    return found
