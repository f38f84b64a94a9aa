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


def totals(profile: Profile, layout: Layout) -> Totals:
    """Return the whole model by token count, from the first that is known to the dense model's.

    Args:
        layout: which parts it has, with a method whose halves the profile holds.
    """
    curves = {**profile.halves, **profile.heads}
    names = [s for pair in layout.reduced for s in pair if s]
    last = profile.subject.tokens
    known = sorted({n for s in names for n in curves[s].counts if n <= last} | {last})
    n = np.arange(known[0], last + 1)

    def added(parts: Sequence[tuple[str, str]]) -> Floats:
        """Return the rows of `_row` for some parts together."""
        rows = [_row(curves, dense, later, n) for dense, later in parts if later]
        ms, down, up, off = np.reshape(rows, (-1, 4, len(n))).swapaxes(0, 1)
        spread = (np.sqrt((each**2).sum(axis=0)) for each in (down, up))
        return np.stack([ms.sum(axis=0), *spread, off.sum(axis=0)])

    blocks = list(zip(layout.dense, layout.reduced, strict=True))
    attention, mlp = (added([(before[i], after[i]) for before, after in blocks]) for i in (0, 1))
    head = added([(layout.head_dense, layout.head)])
    stem = profile.stem.get(layout.stem, Figure.modelled(0.0))
    ms = stem.ms + attention[0] + mlp[0] + head[0]
    down, up = (
        np.sqrt(attention[i] ** 2 + mlp[i] ** 2 + head[i] ** 2 + edge**2)
        for i, edge in ((1, stem.ms - stem.lower), (2, stem.upper - stem.ms))
    )
    counts = tuple(n.tolist())
    return Totals(
        counts,
        tuple(known),
        ms,
        np.maximum(ms - down, 0.0),
        ms + up,
        attention[0],
        mlp[0],
        np.interp(known, n, ms + attention[3] + mlp[3] + head[3]),
        plateaus(counts, ms) if profile.claims_plateaus else (),
    )


def _row(curves: dict[str, Curve], dense: str, later: str, n: npt.NDArray[np.int64]) -> Floats:
    """Return [4, counts]: ms, how far below and above it the quartiles lie, and how far off what
    was measured is; at the dense count, those of the dense part."""
    rows = [_with_spread(curves[sign], n) for sign in (later, dense) if sign]
    return np.where(n == n[-1], rows[-1], rows[0])


def _with_spread(curve: Curve, n: npt.NDArray[np.int64]) -> Floats:
    spreads = (
        [f.ms - f.lower for _, f in curve.points],
        [f.upper - f.ms for _, f in curve.points],
        curve.raw - curve.fit,
    )
    return np.stack([curve.at(n), *(np.interp(n, curve.counts, values) for values in spreads)])
