"""The same reduction in each segment of the patches (frames, windows): segments join the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axis
from tcompile.core.errors import InternalError
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.token_state import TokenState

if TYPE_CHECKING:
    from tcompile.passes.reduce.reducers.base import Reducer, ReducerInput


class Several(AttentionView):
    """The attentions of a block over the same tokens, as one that has the heads of all."""

    def __init__(self, cores: Sequence[AttentionView]) -> None:
        first = cores[0]
        self.b, self.batch, self.node, self.product = (
            first.b,
            first.batch,
            first.node,
            first.product,
        )
        heads = sum(c.attention.heads for c in cores)
        self.attention = replace(first.attention, heads=heads)
        self.cores = tuple(cores)

    def rows(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """See `AttentionView`."""
        return self.b.concat([c.rows(positions) for c in self.cores], 1)

    def logits(self, positions: Sequence[int] | None = None) -> gs.Tensor:
        """See `AttentionView`."""
        return self.b.concat([c.logits(positions) for c in self.cores], 1)

    def keys(self) -> gs.Tensor:
        """Keys averaged over all heads: [B, N, d]; side by side where attentions differ in d."""
        if not self._alike():
            return self.b.concat([c.keys() for c in self.cores], 2)
        heads = [self.b.const([c.attention.heads], np.float32) for c in self.cores]
        parts = [self.b.op("Mul", c.keys(), n) for c, n in zip(self.cores, heads, strict=True)]
        whole = self.b.const([self.attention.heads], np.float32)
        return self.b.op("Div", self.b.op("Sum", *parts), whole)

    @property
    def width(self) -> int:
        """Channels of `keys`."""
        return self.cores[0].width if self._alike() else sum(c.width for c in self.cores)

    def queries(self) -> gs.Tensor:
        """See `Operands`."""
        return self._heads([c.queries() for c in self.cores])

    def head_keys(self) -> gs.Tensor:
        """See `Operands`."""
        return self._heads([c.head_keys() for c in self.cores])

    def values(self) -> gs.Tensor:
        """See `Operands`."""
        return self._heads([c.values() for c in self.cores])

    def context(self) -> gs.Tensor:
        """See `Operands`."""
        return self._heads([c.context() for c in self.cores])

    def raw_scale(self) -> float:
        """See `Operands`."""
        scales = {round(c.raw_scale(), 9) for c in self.cores}
        if len(scales) > 1:
            raise self._strange("the attentions of its block scale their logits differently")
        return self.cores[0].raw_scale()

    def _alike(self) -> bool:
        return len({c.width for c in self.cores}) == 1

    def _heads(self, parts: Sequence[gs.Tensor]) -> gs.Tensor:
        """[B, heads of all, N, d]."""
        if not self._alike():
            raise self._strange("the attentions of its block have heads of different widths")
        return self.b.concat(parts, 1)


class Cores(AttentionView):
    """The attentions of a block that each see a part of the tokens, as one."""

    def __init__(self, cores: Sequence[AttentionView]) -> None:
        first = cores[0]
        self.b, self.attention, self.batch = first.b, first.attention, first.batch
        self.node, self.product = first.node, first.product
        self.cores = tuple(cores)

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B, N, d], the parts one after the other."""
        return self.b.concat([c.keys() for c in self.cores], 1)


class _Folded(AttentionView):
    """An attention whose keys have the segments in the batch."""

    def __init__(self, given: ReducerInput, count: int) -> None:
        core = given.core
        self.b, self.attention, self.batch = given.b, core.attention, None
        self.node, self.product = core.node, core.product
        self.given, self.count = given, count

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads: [B·S, T/S, d]."""
        whole = self.given.of_patches(self.given.core.keys())
        return self.b.reshape(whole, [-1, self.count, self.given.core.width])


def core_of(
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
    cores = [Several(group) if len(group) > 1 else group[0] for group in groups.values()]
    return Cores(cores) if attentions[0].columns != axis else cores[0]


def by_segment(
    reducer: Reducer, given: ReducerInput, segments: int
) -> tuple[gs.Tensor, TokenState]:
    """Run a reducer on [B·S, T/S, C] and put its result together again."""
    b, before, total = given.b, given.stage, given.patches
    count, keep = before.count // segments, given.keep // segments
    each = total // segments

    def rows(x: gs.Tensor, length: int) -> gs.Tensor:
        return b.reshape(x, [-1, length, given.width], fp32=False)

    table = given.table
    if table is not None:
        share = len(table) // segments
        parts = [table[i * share : (i + 1) * share] - i * each for i in range(segments)]
        if any(not np.array_equal(parts[0], p) for p in parts):
            raise InternalError("groups of tokens do not repeat from segment to segment")
        table = parts[0]
    inner = replace(
        given,
        x=rows(given.of_patches(given.x, fp32=False), count),
        beside=None if given.beside is None else rows(given.of_patches(given.beside), count),
        score=None if given.score is None else b.reshape(given.score, [-1, count]),
        core=_Folded(given, count),
        stage=_folded(b, before, segments, each, table),
        prefix=0,
        suffix=0,
        patches=each,
        keep=keep,
        table=table,
        fixed=None,
    )
    reduced, after = reducer.run(inner)
    whole_again = _unfolded(b, after, segments, each, count, table)
    return given.joined(rows(reduced, given.keep), fp32=False), whole_again


def _lengths(count: int, each: int, members: int) -> dict[str, int]:
    """How long each tensor of a stage is in one segment."""
    return {
        "index": count,
        "size": count,
        "local": count,
        "owner": each,
        "groups": count // members,
        "group_owner": each // members,
    }


def _folded(
    b: Builder, stage: TokenState, segments: int, each: int, table: np.ndarray | None
) -> TokenState:
    """The stage with the segments in the batch, numbers counted from each segment's first."""
    members = 1 if table is None else table.shape[1]
    count = stage.count // segments
    steps = {
        "index": each,
        "owner": count,
        "groups": each // members,
        "group_owner": count // members,
    }
    found: dict[str, Any] = {}
    for name, length in _lengths(count, each, members).items():
        tensor = getattr(stage, name)
        if tensor is not None and name != "local":
            shift = -steps.get(name, 0) * np.arange(segments)[None, :, None]
            tensor = b.reshape(tensor, [-1, segments, length])
            if shift.any():
                tensor = b.op("Add", tensor, b.const(shift), dtype=tensor.dtype)
            tensor = b.reshape(tensor, [-1, length])
        found[name] = tensor if name != "local" else None
    return replace(stage, count=count, cache={}, **found)


def _unfolded(
    b: Builder, stage: TokenState, segments: int, each: int, before: int, table: np.ndarray | None
) -> TokenState:
    """The inverse, after a reduction of segments of `before` tokens."""
    members = 1 if table is None else table.shape[1]
    steps = {
        "index": each,
        "local": before,
        "owner": stage.count,
        "groups": each // members,
        "group_owner": stage.count // members,
    }
    found: dict[str, Any] = {}
    for name, length in _lengths(stage.count, each, members).items():
        tensor = getattr(stage, name)
        if tensor is not None:
            shift = steps.get(name, 0) * np.arange(segments)[None, :, None]
            tensor = b.reshape(tensor, [-1, segments, length])
            if shift.any():
                tensor = b.op("Add", tensor, b.const(shift), dtype=tensor.dtype)
            tensor = b.reshape(tensor, [-1, segments * length])
        found[name] = tensor
    return replace(stage, count=stage.count * segments, cache={}, **found)
