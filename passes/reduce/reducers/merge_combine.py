"""Tokens that merge become one: one-hot matrix products, no scatter-add."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import ReducerInput
from tcompile.passes.reduce.reducers.common import TINY, numbers, rows

COMBINES = ("mean", "plain", "drop", "mlerp", "score")

#: Squares of lengths of less are this.
_TINY_SQUARE = 1e-30


def leave(
    b: Builder, source: gs.Tensor, target: gs.Tensor, count: int, r: int, order: np.ndarray
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """Line up what is left.

    Args:
        source, target: [B, r] places of those that leave and of those they become part of.
        order: [T], what those that stay are to be sorted by; no two are equal.

    Returns:
        keep [B, K]: places of those that stay; slot [B, r]: where each target is among these;
        step [B, T]: where each token went.
    """
    last = b.op("Mul", b.cast(source, np.float32), b.const([0], np.float32))
    last = b.op("Add", last, b.const([2 * count], np.float32))
    first = b.op("Mul", b.slice(last, 1, 0, 1), b.const([0], np.float32))
    key = b.op("Add", first, b.const(order[None], np.float32))
    key = b.op("ScatterElements", key, source, last, axis=1)
    _, keep = b.top_k(key, count - r, largest=False)
    step = numbers(b, source, count)
    step = b.op("ScatterElements", step, keep, numbers(b, keep, count - r), dtype=np.int64, axis=1)
    slot = b.op("GatherElements", step, target, dtype=np.int64, axis=1)
    return keep, slot, b.op("ScatterElements", step, source, slot, dtype=np.int64, axis=1)


class Groups:
    """The tokens that stay, each with those that become part of it."""

    def __init__(self, inputs: ReducerInput, keep: gs.Tensor, source: gs.Tensor, slot: gs.Tensor):
        self.b, self.inputs, self.keep, self.source = inputs.builder, inputs, keep, source
        places = inputs.builder.const(np.arange(inputs.keep).reshape(1, -1, 1))
        self._same = (inputs.builder.unsqueeze(slot, 1), places)
        self._onehot: gs.Tensor | None = None

    @property
    def onehot(self) -> gs.Tensor:
        """[B, K, r]: 1 where a token that leaves becomes part of one that stays."""
        if self._onehot is None:
            self._onehot = self.b.cast(self.b.op("Equal", *self._same, dtype=np.bool_), np.float32)
        return self._onehot

    def sizes(self) -> gs.Tensor:
        """[B, K]: s_k + Σ s_leaving."""
        return self.b.squeeze(self._sum(self.inputs.state.size), 2)

    def features(self, combine: str) -> gs.Tensor:
        """[B, K, C], over a token that stays and all that become part of it:

        * mean: Σ s x/Σ s, by the sizes of before; plain: Σ x/n; score: Σ c s x/Σ c s, c the score;
        * mlerp: the direction of that mean at the length of the longest: x̄/‖x̄‖ · max ‖x‖;
        * drop: the token that stays, as it is.
        """
        b, inputs = self.b, self.inputs
        patches = inputs.of_patches(inputs.x, fp32=False)
        staying = rows(b, patches, self.keep, fp32=False)
        if combine == "drop":
            return staying
        leaving, weight = rows(b, patches, self.source, fp32=False), self._weight(combine)
        own, arriving = staying, leaving
        if weight is not None:
            own = b.op("Mul", staying, self._column(weight, self.keep))
            arriving = b.op("Mul", leaving, self._column(weight, self.source))
        total = b.op("Add", own, b.op("MatMul", self.onehot, arriving))
        mean = b.op("Div", total, self._sum(weight))
        if combine != "mlerp":
            return mean
        others = b.transpose(self._length(leaving), [0, 2, 1])
        longest = b.reduce("Max", b.op("Mul", self.onehot, others), [2], 1)
        longest = b.op("Max", self._length(staying), longest)
        return b.op("Mul", b.op("Div", mean, self._length(mean)), longest)

    def _weight(self, combine: str) -> gs.Tensor | None:
        size = self.inputs.state.size
        if combine != "score":
            return None if combine == "plain" else size
        assert self.inputs.score is not None
        score = self.b.op("Max", self.inputs.score, self.b.const([TINY], np.float32))
        return score if size is None else self.b.op("Mul", score, size)

    def _sum(self, values: gs.Tensor | None) -> gs.Tensor:
        """[B, K, 1]: the sum over each group; None: 1 each."""
        b = self.b
        if values is None:
            return b.op("Add", b.reduce("Sum", self.onehot, [2], 1), b.const([1], np.float32))
        arriving = b.op("MatMul", self.onehot, self._column(values, self.source))
        return b.op("Add", self._column(values, self.keep), arriving)

    def _column(self, values: gs.Tensor, places: gs.Tensor) -> gs.Tensor:
        return self.b.unsqueeze(self.b.op("GatherElements", values, places, axis=1), 2)

    def _length(self, x: gs.Tensor) -> gs.Tensor:
        b = self.b
        squares = b.reduce("Sum", b.op("Mul", x, x), [2], 1)
        return b.op("Sqrt", b.op("Max", squares, b.const([_TINY_SQUARE], np.float32)))
