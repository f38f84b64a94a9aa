"""Who may merge into whom: the splits of `merge` into sources A and destinations B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Grid, ReducerInput
from tcompile.passes.reduce.reducers.grids import cells, planes

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


def sides(given: ReducerInput) -> tuple[Side, Side]:
    """A and B of T tokens, r of which are to merge.

    * alternate (ToMe): even and odd places; parity=reference: of the sequence with its prefix,
      which is what ToMe's code does where CLS (and distillation token) take part but may not merge.
    * energy (PiToMe, "bsm"): even and odd ranks by score = −energy, least first.
    * protected (PiToMe): even and odd ranks of the 2r first of these; the others take no part.
    * halves (Zero-TPrune): the T//2 of least score, and the rest.
    * grid (tomesd): all others, and the top-left token of every whole sy x sx cell.
    """
    b, count, parameters = given.b, given.stage.count, given.parameters
    split, r = parameters["split"], count - given.keep
    if split not in SORTED:
        places = dst_places(parameters, count, given.grid, given.prefix)
        rest = np.setdiff1d(np.arange(count), places)
        return Side(rest, len(rest)), Side(places, len(places))
    taken = 2 * r if split == "protected" else count
    assert given.score is not None
    _, ranked = b.nodes(
        "TopK", [given.score, [taken]], [np.float32, np.int64], axis=-1, largest=0, sorted=1
    )
    if split == "halves":
        half = count // 2
        return (
            Side(b.slice(ranked, 1, 0, half), half),
            Side(b.slice(ranked, 1, half, None), count - half),
        )
    even, odd = (b.op("Slice", ranked, [i], [taken], [1], [2], dtype=np.int64) for i in (0, 1))
    return Side(even, taken - taken // 2), Side(odd, taken // 2)


def shifted(parameters: Mapping[str, Any], prefix: int) -> bool:
    """Whether it is the odd patches that are sources: even places of a sequence with its prefix."""
    return parameters["parity"] == "reference" and prefix % 2 == 1


def dst_places(parameters: Mapping[str, Any], count: int, grid: Grid, prefix: int = 0) -> _Array:
    """B where it does not depend on the image; empty where there is no grid for it."""
    if parameters["split"] == "alternate":
        return np.arange(0 if shifted(parameters, prefix) else 1, count, 2)
    now = planes(grid, count)
    if not now:
        return np.zeros(0, np.int64)
    return np.asarray(cells(now, parameters["sy"], parameters["sx"])[:, 0])
