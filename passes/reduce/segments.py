"""The same reduction in each segment of the patches (frames, windows): segments join the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.core.errors import InternalError
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Reducer, ReducerInput
from tcompile.passes.reduce.token_state import TokenState


class JoinedHeads(AttentionView):
    """The attentions of a block over the same tokens, as one that has the heads of all."""

    def __init__(self, views: Sequence[AttentionView]) -> None:
        vars(self).update(vars(views[0]))
        self.matched = replace(self.matched, heads=sum(v.matched.heads for v in views))
        self.views = tuple(views)

    def rows(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """See `AttentionView`."""
        return self.builder.concat([v.rows(positions) for v in self.views], 1)

    def logits(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """See `AttentionView`."""
        return self.builder.concat([v.logits(positions) for v in self.views], 1)

    def keys(self) -> gs.Tensor:
        """Keys averaged over all heads: [B, N, d]; side by side where attentions differ in d."""
        if not self._alike():
            return self.builder.concat([v.keys() for v in self.views], 2)
        heads = [self.builder.const([v.matched.heads], np.float32) for v in self.views]
        parts = [
            self.builder.op("Mul", v.keys(), n) for v, n in zip(self.views, heads, strict=True)
        ]
        whole = self.builder.const([self.matched.heads], np.float32)
        return self.builder.op("Div", self.builder.op("Sum", *parts), whole)

    @property
    def width(self) -> int:
        """Channels of `keys`."""
        return self.views[0].width if self._alike() else sum(v.width for v in self.views)

    def queries(self) -> gs.Tensor:
        """See `AttentionView`."""
        return self._heads([v.queries() for v in self.views])

    def head_keys(self) -> gs.Tensor:
        """See `AttentionView`."""
        return self._heads([v.head_keys() for v in self.views])

    def values(self) -> gs.Tensor:
        """See `AttentionView`."""
        return self._heads([v.values() for v in self.views])

    def context(self) -> gs.Tensor:
        """See `AttentionView`."""
        return self._heads([v.context() for v in self.views])

    def raw_scale(self) -> float:
        """See `AttentionView`."""
        scales = {round(v.raw_scale(), 9) for v in self.views}
        if len(scales) > 1:
            raise self._strange("the attentions of its block scale their logits differently")
        return self.views[0].raw_scale()

    def _alike(self) -> bool:
        return len({v.width for v in self.views}) == 1

    def _heads(self, parts: Sequence[gs.Tensor]) -> gs.Tensor:
        """[B, heads of all, N, d]."""
        if not self._alike():
            raise self._strange("the attentions of its block have heads of different widths")
        return self.builder.concat(parts, 1)


class Parts(AttentionView):
    """The attentions of a block that each see a part of the tokens, as one."""

    def __init__(self, views: Sequence[AttentionView]) -> None:
        vars(self).update(vars(views[0]))
        self.views = tuple(views)

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B, N, d], the parts one after the other."""
        return self.builder.concat([v.keys() for v in self.views], 1)


class _Folded(AttentionView):
    """An attention whose keys have the segments in the batch."""

    def __init__(self, inputs: ReducerInput, count: int) -> None:
        vars(self).update(vars(inputs.attention), batch=None)
        self.inputs, self.count = inputs, count

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B·S, T/S, d]."""
        attention = self.inputs.attention
        return self.builder.reshape(
            self.inputs.of_patches(attention.keys()), [-1, self.count, attention.width]
        )


def view_of(
    b: Builder,
    attentions: Sequence[Attention],
    axis: Axis,
    nodes: Mapping[str, gs.Node],
    batch: int | None,
) -> AttentionView:
    """The attentions of a block as one: those over the same tokens by their heads, those that see
    segments apart one after the other.

    Args:
        axis: of all tokens.
    """
    groups: dict[Axis, list[AttentionView]] = {}
    for one in attentions:
        groups.setdefault(one.columns, []).append(AttentionView(b, one, nodes, batch))
    views = [JoinedHeads(group) if len(group) > 1 else group[0] for group in groups.values()]
    return Parts(views) if attentions[0].columns != axis else views[0]


def by_segment(
    reducer: Reducer, inputs: ReducerInput, segments: int
) -> tuple[gs.Tensor, TokenState]:
    """Run a reducer on [B·S, T/S, C] and put its result together again."""
    b, before = inputs.builder, inputs.state
    count, keep = before.count // segments, inputs.keep // segments
    each = inputs.dense_count // segments

    def rows(x: gs.Tensor, length: int) -> gs.Tensor:
        return b.reshape(x, [-1, length, inputs.width], fp32=False)

    table = inputs.group_table
    if table is not None:
        share = len(table) // segments
        parts = [table[i * share : (i + 1) * share] - i * each for i in range(segments)]
        if any(not np.array_equal(parts[0], p) for p in parts):
            raise InternalError("groups of tokens do not repeat from segment to segment")
        table = parts[0]
    inner = replace(
        inputs,
        x=rows(inputs.of_patches(inputs.x, fp32=False), count),
        residual=(
            None if inputs.residual is None else rows(inputs.of_patches(inputs.residual), count)
        ),
        score=None if inputs.score is None else b.reshape(inputs.score, [-1, count]),
        attention=_Folded(inputs, count),
        state=_segmented(b, before, segments, each, table),
        prefix=0,
        suffix=0,
        dense_count=each,
        keep=keep,
        group_table=table,
        fixed_score=None,
    )
    reduced, after = reducer.run(inner)
    whole_again = _segmented(b, after, segments, each, table, count)
    return inputs.joined(rows(reduced, inputs.keep), fp32=False), whole_again


def _segmented(
    b: Builder,
    state: TokenState,
    segments: int,
    each: int,
    table: np.ndarray | None,
    before: int | None = None,
) -> TokenState:
    """The state with the segments in the batch, numbers counted from each segment's first.

    Args:
        each: patches of the dense model in a segment.
        before: do the inverse, after a reduction of segments of so many tokens.
    """
    split, members = before is None, 1 if table is None else table.shape[1]
    count = state.count // segments if split else state.count
    # The length of each tensor in one segment, and how far the numbers of two segments are apart.
    parts = {
        "index": (count, each),
        "size": (count, 0),
        "local": (count, before or 0),
        "owner": (each, count),
        "groups": (count // members, each // members),
        "group_owner": (each // members, count // members),
    }
    found: dict[str, Any] = {}
    for name, (length, step) in parts.items():
        tensor = None if split and name == "local" else getattr(state, name)
        if tensor is not None:
            shift = (-step if split else step) * np.arange(segments)[None, :, None]
            tensor = b.reshape(tensor, [-1, segments, length])
            if shift.any():
                tensor = b.op("Add", tensor, b.const(shift), dtype=tensor.dtype)
            tensor = b.reshape(tensor, [-1, length if split else segments * length])
        found[name] = tensor
    return replace(state, count=count if split else count * segments, cache={}, **found)
