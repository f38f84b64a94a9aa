"""A profile as curves of the whole model, for tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.profiling.curve import Curve, Figure
from tcompile.profiling.plateaus import Plateau, plateaus
from tcompile.profiling.profile import Profile
from tcompile.profiling.structure import Layout

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Totals:
    """A model that carries n tokens from the first block to the last, stem and head included.

    Attributes:
        counts: ascending, the last the dense model's.
        known: of them, those that figures are of.
        ms, lower, upper: of the whole; quartiles added up as if parts varied independently.
        attention, mlp: of all blocks.
        raw: at `known`, before the fit: as it was measured.
        plateaus: of `ms`; none where the profile cannot tell them from noise.
    """

    counts: tuple[int, ...]
    known: tuple[int, ...]
    ms: Floats
    lower: Floats
    upper: Floats
    attention: Floats
    mlp: Floats
    raw: Floats
    plateaus: tuple[Plateau, ...]


def totals(
    profile: Profile, layout: Layout, counts: Sequence[int] | None = None, *, eps: float = 0.01
) -> Totals:
    """The whole model by token count.

    Args:
        layout: which parts it has, with a method whose halves the profile holds.
        counts: None: all from the first that is known to the dense model's.
        eps: of a plateau, as a share.
    """
    curves = {**profile.halves, **profile.heads}
    names = [s for pair in layout.reduced for s in pair if s]
    last = profile.subject.tokens
    known = sorted({n for s in names for n in curves[s].counts if n <= last} | {last})
    n = np.asarray(counts or range(known[0], last + 1), np.int64)

    def added(parts: Sequence[tuple[str, str]]) -> tuple[Floats, Floats, Floats, Floats]:
        rows = [_row(curves, dense, later, n) for dense, later in parts if later]
        ms, off = (sum((r[i] for r in rows), np.zeros(len(n))) for i in (0, 3))
        down, up = (np.sqrt(sum((r[i] ** 2 for r in rows), np.zeros(len(n)))) for i in (1, 2))
        return ms, down, up, off

    halves = [
        added(
            [
                (before[i], after[i])
                for before, after in zip(layout.dense, layout.reduced, strict=True)
            ]
        )
        for i in (0, 1)
    ]
    head = added([(layout.head_dense, layout.head)])
    stem = profile.stem.get(layout.stem, Figure.modelled(0.0))
    ms = stem.ms + halves[0][0] + halves[1][0] + head[0]
    down, up = (
        np.sqrt(halves[0][i] ** 2 + halves[1][i] ** 2 + head[i] ** 2 + edge**2)
        for i, edge in ((1, stem.ms - stem.lower), (2, stem.upper - stem.ms))
    )
    found = tuple(int(c) for c in n)
    raw = np.interp(known, n, ms + halves[0][3] + halves[1][3] + head[3])
    return Totals(
        found,
        tuple(known),
        ms,
        np.maximum(ms - down, 0.0),
        ms + up,
        halves[0][0],
        halves[1][0],
        np.asarray(raw),
        plateaus(found, ms, eps) if profile.claims_plateaus else (),
    )


def _row(
    curves: dict[str, Curve], dense: str, later: str, n: npt.NDArray[np.int64]
) -> tuple[Floats, Floats, Floats, Floats]:
    """ms, how far below and above it the quartiles lie, and how far off what was measured is; at
    the dense count, those of the dense part."""
    parts = [_with_spread(curves[later], n)]
    if dense:
        parts.append(_with_spread(curves[dense], n))
    rows = [np.where(n == n[-1], parts[-1][i], parts[0][i]) for i in range(4)]
    return rows[0], rows[1], rows[2], rows[3]


def _with_spread(curve: Curve, n: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats, Floats]:
    down, up, off = (
        np.asarray(np.interp(n, curve.counts, values))
        for values in (
            [f.ms - f.lower for _, f in curve.points],
            [f.upper - f.ms for _, f in curve.points],
            curve.raw - curve.fit,
        )
    )
    return curve.at(n), down, up, off
