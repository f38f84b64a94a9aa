"""The parts of `merge`: which tokens leave, into which they merge, and what becomes of them.

Tokens that merge become one by one-hot matrix products, without scatter-add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Grid, ReducerInput
from tcompile.passes.reduce.reducers.common import TINY, cells, numbers, planes, rows

#: `energy`, `protected` and `halves` sort by the score.
SPLITS = ("alternate", "energy", "protected", "halves", "grid")
PARITIES = ("stripped", "reference")
SORTED = frozenset({"energy", "protected", "halves"})

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Side:
    """Some of the tokens.

    Attributes:
        places: where they are: [n], the same for every image, or a tensor [B, n] i64.
        count: n.
    """

    places: _Array | gs.Tensor
    count: int

    def rows(self, b: Builder, x: gs.Tensor) -> gs.Tensor:
        """Theirs of [B, T, D]."""
        if isinstance(self.places, gs.Tensor):
            return b.call("TcGatherTokens", x, self.places, dtypes=[x.dtype])[0]
        return self._fixed(b, self.places, x)

    def values(self, b: Builder, x: gs.Tensor) -> gs.Tensor:
        """Theirs of [B, T]."""
        if isinstance(self.places, gs.Tensor):
            return b.op("GatherElements", x, self.places, dtype=x.dtype, axis=1)
        return self._fixed(b, self.places, x)

    def at(self, b: Builder, numbers: gs.Tensor) -> gs.Tensor:
        """[B, m]: the places of the numbered ones among them."""
        if isinstance(self.places, gs.Tensor):
            return b.op("GatherElements", self.places, numbers, dtype=np.int64, axis=1)
        return b.op("Gather", b.const(self.places), numbers, dtype=np.int64, axis=0)

    @staticmethod
    def _fixed(b: Builder, places: _Array, x: gs.Tensor) -> gs.Tensor:
        steps = set(np.diff(places).tolist())
        if len(steps) == 1:
            first, last, step = int(places[0]), int(places[-1]), steps.pop()
            return b.op("Slice", x, [first], [last + 1], [1], [step], dtype=x.dtype)
        return b.op("Gather", x, b.const(places), dtype=x.dtype, axis=1)


def sides(inputs: ReducerInput) -> tuple[Side, Side]:
    """A and B of T tokens, r of which are to merge.

    * alternate (ToMe): even and odd places; parity=reference: of the sequence with its prefix,
      which is what ToMe's code does where CLS (and distillation token) take part but may not merge.
    * energy (PiToMe, "bsm"): even and odd ranks by score = −energy, least first.
    * protected (PiToMe): even and odd ranks of the 2r first of these; the others take no part.
    * halves (Zero-TPrune): the T//2 of least score, and the rest.
    * grid (tomesd): all others, and the top-left token of every whole sy x sx cell.
    """
    b, count, parameters = inputs.builder, inputs.state.count, inputs.parameters
    split, r = parameters["split"], count - inputs.keep
    if split not in SORTED:
        places = dst_places(parameters, count, inputs.grid, inputs.prefix)
        rest = np.setdiff1d(np.arange(count), places)
        return Side(rest, len(rest)), Side(places, len(places))
    taken = 2 * r if split == "protected" else count
    assert inputs.score is not None
    _, ranked = b.top_k(inputs.score, taken, largest=False)
    if split == "halves":
        half = count // 2
        return (
            Side(b.slice(ranked, 1, 0, half), half),
            Side(b.slice(ranked, 1, half, None), count - half),
        )
    even, odd = (b.op("Slice", ranked, [i], [taken], [1], [2], dtype=np.int64) for i in (0, 1))
    return Side(even, taken - taken // 2), Side(odd, taken // 2)


def shifted(parameters: Mapping[str, Any], prefix: int) -> bool:
    """Tell if it is the odd patches that are sources: even places of a sequence with its prefix."""
    return parameters["parity"] == "reference" and prefix % 2 == 1


def dst_places(parameters: Mapping[str, Any], count: int, grid: Grid, prefix: int = 0) -> _Array:
    """B where it does not depend on the image; empty where there is no grid for it."""
    if parameters["split"] == "alternate":
        return np.arange(0 if shifted(parameters, prefix) else 1, count, 2)
    now = planes(grid, count)
    if not now:
        return np.zeros(0, np.int64)
    return np.asarray(cells(now, parameters["sy"], parameters["sx"])[:, 0])


#: MCTF's temperatures of information and size, taken as roots; that of similarity is 1.
TAU_INFORMATION, TAU_SIZE = 20, 40


def edges(inputs: ReducerInput, features: gs.Tensor, a: Side, other: Side) -> gs.Tensor:
    """[B, |A|, |B|] fp32: cos(f_a, f_b), then

    * MCTF: ((cos + 1)/2) · (â_a â_b)^(1/20) · (ŝ_a ŝ_b)^(1/40), â = 1/score and ŝ = 1/size, both
      divided by their largest;
    * Turbo: minus penalty · score_a.
    """
    b, parameters = inputs.builder, inputs.parameters
    each = b.unit(features)
    found = b.op("MatMul", a.rows(b, each), b.transpose(other.rows(b, each), [0, 2, 1]))
    if parameters["criteria"] == "mctf":
        half = b.op("Mul", b.op("Add", found, _number(b, 1)), _number(b, 0.5))
        assert inputs.score is not None
        found = _times(b, half, inputs.score, 1 / TAU_INFORMATION, a, other)
        if inputs.state.size is not None:
            found = _times(b, found, inputs.state.size, 1 / TAU_SIZE, a, other)
    if parameters["penalty"]:
        assert inputs.score is not None
        scored = b.unsqueeze(a.values(b, inputs.score), 2)
        found = b.op("Sub", found, b.op("Mul", scored, _number(b, parameters["penalty"])))
    return found


def _times(
    b: Builder, found: gs.Tensor, values: gs.Tensor, power: float, a: Side, other: Side
) -> gs.Tensor:
    """found · (v_a v_b)^power with v = (1/value)/max(1/value) = min(value)/value."""
    safe = b.op("Max", values, _number(b, TINY))
    ratio = b.op("Div", b.reduce("Min", safe, [1], 1), safe)
    rooted = b.op("Pow", ratio, _number(b, power))
    row, column = b.unsqueeze(a.values(b, rooted), 2), b.unsqueeze(other.values(b, rooted), 1)
    return b.op("Mul", b.op("Mul", found, row), column)


def _number(b: Builder, value: float) -> gs.Tensor:
    return b.const([value], np.float32)


#: Taken off the edges of tokens that have left.
_FAR = 1e30


def match(
    b: Builder, edges: gs.Tensor, a: Side, other: Side, r: int, both: bool
) -> tuple[gs.Tensor, gs.Tensor]:
    """Match each token of A by its best edge, and take the r best of these; ties: the lower number.

    Args:
        edges: [B, |A|, |B|].
        both: r//2 go from A to B, then the rest from B to what is left of A, by the same edges
            (MCTF); what went into a token that leaves in its turn goes with it.

    Returns:
        source, target: [B, r] places of those that leave and of those they become part of.
    """
    first, second = (r // 2, r - r // 2) if both else (r, 0)
    if first:
        one, partner = _best(b, edges, a.count, first)
        source, target = a.at(b, one), other.at(b, partner)
        if not second:
            return source, target
        edges = _without(b, edges, one)
    back, into = _best(b, b.transpose(edges, [0, 2, 1]), other.count, second)
    later, last = other.at(b, back), a.at(b, into)
    if not first:
        return later, last
    # [B, |B|]: where what is in each token of B is in the end.
    ends = b.op(
        "ScatterElements",
        other.at(b, numbers(b, back, other.count)),
        back,
        last,
        dtype=np.int64,
        axis=1,
    )
    target = b.op("GatherElements", ends, partner, dtype=np.int64, axis=1)
    return b.concat([source, later], 1), b.concat([target, last], 1)


def _best(b: Builder, edges: gs.Tensor, count: int, r: int) -> tuple[gs.Tensor, gs.Tensor]:
    """[B, r] twice: numbers of the rows with the best edges, and of their best columns."""
    value, partner = b.top_k(edges, 1)
    partner = b.squeeze(partner, 2)
    if r == count:
        return numbers(b, partner, count), partner
    _, rows = b.top_k(b.squeeze(value, 2), r)
    return rows, b.op("GatherElements", partner, rows, dtype=np.int64, axis=1)


def _without(b: Builder, edges: gs.Tensor, rows: gs.Tensor) -> gs.Tensor:
    """The edges, those of the numbered rows out of reach."""
    zero, far = b.const([0], np.float32), b.const([_FAR], np.float32)
    near = b.op("Mul", b.reduce("Max", edges, [2]), zero)
    low = b.op("Sub", b.op("Mul", b.cast(rows, np.float32), zero), far)
    gone = b.op("ScatterElements", near, rows, low, axis=1)
    return b.op("Add", edges, b.unsqueeze(gone, 2))


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
