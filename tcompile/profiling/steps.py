"""Whether the plateaus that a profile shows are more than noise.

On a plateau more tokens cost nothing. It ends in a step: a rise beyond that of the line through the
curve's ends, and beyond the rises on both sides. Where times vary by more than the largest step
rises, a flat piece may be noise, and whoever takes it for a plateau keeps more tokens than were
asked for, and pays for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tcompile.profiling.curve import Curve, Floats

#: A spread beyond which a machine was likely doing something else.
_BUSY = 0.08
#: Times the distance between quartiles: what the largest of a dozen rises of a smooth curve hardly
#: ever exceeds by noise alone (in simulations of seven runs at each count, 3 curves of 100).
_SURE = 2.5


@dataclass(frozen=True)
class Steps:
    """What a measured profile shows.

    Attributes:
        counts: token counts that it has figures of.
        spread: of a rise between two counts, as a share of the time: `_SURE` times the typical
            distance between quartiles, or by how much a time falls while tokens are added,
            whichever is more.
        step: the largest rise between neighbours beyond what a smooth curve would rise there, as a
            share of the time around it.
    """

    counts: int
    spread: float
    step: float

    @property
    def why_none(self) -> str:
        """Why no plateau can be told from noise; empty where one can."""
        if self.counts < 3:
            return f"measured at {self.counts} token counts, and three show a step at least"
        if self.spread < self.step:
            return ""
        busy = ": measured on a busy machine?" if self.spread > _BUSY else ""
        return (
            f"spread {_percent(self.spread)} exceeds the largest step {_percent(self.step)}{busy}"
        )


def steps_of(curves: Iterable[Curve]) -> Steps:
    """Of all parts together, each structure once, at the counts that all of them cover.

    Curves of a single count say nothing and are left out.
    """
    parts = [c for c in curves if len(c.points) > 1]
    if not parts:
        return Steps(1, 0.0, 0.0)
    low, high = max(c.counts[0] for c in parts), min(c.counts[-1] for c in parts)
    counts = sorted({n for c in parts for n in c.counts if low <= n <= high})
    if len(counts) < 3:
        return Steps(len(counts), 0.0, 0.0)
    raw = np.sum([np.interp(counts, c.counts, c.raw) for c in parts], axis=0)
    fit = np.maximum(np.sum([c.at(counts) for c in parts], axis=0), 1e-9)
    apart = [np.interp(counts, c.counts, [f.upper - f.lower for _, f in c.points]) for c in parts]
    typical = _SURE * float(np.median(np.sqrt(np.sum(np.square(apart), axis=0)) / fit))
    highest = np.maximum(np.maximum.accumulate(raw), 1e-9)
    fall = float(((highest - raw) / highest).max())
    return Steps(len(counts), max(typical, fall), _largest_step(np.asarray(counts, float), fit))


def _largest_step(counts: Floats, ms: Floats) -> float:
    """The largest rise beyond the line through the ends and the mean of the slopes beside it."""
    gaps = np.diff(counts)
    slopes = np.diff(ms) / gaps
    beside = np.empty_like(slopes)
    beside[1:-1] = (slopes[:-2] + slopes[2:]) / 2
    # At the ends: the one neighbour, or what its own trend leads to.
    beside[0] = max(slopes[1], 2 * slopes[1] - slopes[min(2, len(slopes) - 1)])
    beside[-1] = max(slopes[-2], 2 * slopes[-2] - slopes[max(len(slopes) - 3, 0)])
    line = (ms[-1] - ms[0]) / (counts[-1] - counts[0])
    # A share of the largest time that was looked at, whose noise is the largest too.
    last = len(ms) - 1
    most = ms[[min(3, last), *(min(i + 2, last) for i in range(1, last))]]
    return max(float(((slopes - np.maximum(beside, line)) * gaps / most).max()), 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
