"""Plateaus: latency falls in steps as tokens leave, and on a step more tokens cost nothing.

The right edge of a count n is the largest n' ≥ n with t(n') ≤ (1 + ε)·t(n). Plateaus cut all counts
into runs from the left: each begins where the last one ended, at n, and ends at n's right edge. On
a smooth slope they are what ε makes them; on a staircase, its steps.

In a measured profile they may be noise. A plateau ends in a step: a rise beyond that of the line
through the curve's ends, and beyond the rises on both sides. Where times vary by more than the
largest step rises, a flat piece may be noise, and whoever takes it for a plateau keeps more tokens
than were asked for, and pays for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.profiling.curve import Curve, Floats

#: The most that tokens may cost to be called free, as a share of what is proportional to them.
FREE = 0.25


@dataclass(frozen=True)
class Plateau:
    """Token counts that take the same time within ε: from, to, and the ms at the right edge."""

    first: int
    last: int
    ms: float


def plateaus(counts: Sequence[int], ms: npt.ArrayLike, eps: float = 0.01) -> tuple[Plateau, ...]:
    """Return all plateaus, ascending; each count lies on one."""
    times = _checked(counts, ms, eps)
    found, first = [], 0
    while first < len(times):
        last = int(np.flatnonzero(times <= (1 + eps) * times[first])[-1])
        found.append(Plateau(int(counts[first]), int(counts[last]), float(times[last])))
        first = last + 1
    return tuple(found)


def free_edge(counts: Sequence[int], ms: npt.ArrayLike, count: int, eps: float = 0.01) -> int:
    """Return the largest count that costs nothing over this one, also not by a small slope.

    ε alone would call the next one or two counts of any slope free. A count n' > n is free if
    t(n') ≤ (1 + ε)·t(n) and the rise is below a quarter of what is proportional to the tokens:
    t(n')/t(n) − 1 ≤ ¼·(n'/n − 1). The counts between them must be free too.

    Raises:
        UsageError: a count that is not on the grid.
    """
    times = _checked(counts, ms, eps)
    if count not in counts:
        raise UsageError(f"{count} tokens are not on the grid of counts", where="plateaus")
    at = list(counts).index(count)
    edge = at
    for more in range(at + 1, len(times)):
        rise = times[more] - times[at]
        share = min(eps, FREE * (counts[more] / count - 1))
        if rise > share * times[at]:
            break
        edge = more
    return int(counts[edge])


def grid(
    counts: Sequence[int], curves: Sequence[npt.ArrayLike], *, align: int = 8, eps: float = 0.01
) -> tuple[int, ...]:
    """Return the counts worth planning with: multiples of `align`, right edges, and all tokens.

    Args:
        counts: ascending, the last the dense model's.
        curves: ms by count, one for each structure of block half.
    """
    edges = {p.last for curve in curves for p in plateaus(counts, curve, eps)}
    return tuple(c for c in counts if c % align == 0 or c in edges or c == counts[-1])


def _checked(counts: Sequence[int], ms: npt.ArrayLike, eps: float) -> npt.NDArray[np.float64]:
    times = np.asarray(ms, np.float64)
    if times.shape != (len(counts),) or list(counts) != sorted(set(counts)):
        raise UsageError("needs ascending token counts and as many latencies", where="plateaus")
    if not np.all(np.isfinite(times)) or np.any(times < 0) or eps < 0:
        raise UsageError("latencies and ε must be finite and not negative", where="plateaus")
    return times


#: A spread beyond which a machine was likely doing something else.
_BUSY = 0.08
#: Times the distance between quartiles: what the largest of a dozen rises of a smooth curve hardly
#: ever exceeds by noise alone (in simulations of seven runs at each count, 3 curves of 100).
_SURE = 2.5


@dataclass(frozen=True)
class StepEvidence:
    """Return how far the steps of a measured profile rise above its noise.

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
    def busy(self) -> bool:
        """Tell whether the machine was likely doing something else while it was measured."""
        return self.spread > _BUSY

    @property
    def why_none(self) -> str:
        """Return why no plateau can be told from noise; empty where one can."""
        if self.counts < 3:
            return f"measured at {self.counts} token counts, and three show a step at least"
        if self.spread < self.step:
            return ""
        busy = ": measured on a busy machine?" if self.busy else ""
        return (
            f"spread {_percent(self.spread)} exceeds the largest step {_percent(self.step)}{busy}"
        )


def step_evidence(curves: Iterable[Curve]) -> StepEvidence:
    """Return the evidence of all parts together, each once, at the counts that all of them cover.

    Curves of a single count say nothing and are left out.
    """
    parts = [c for c in curves if len(c.points) > 1]
    if not parts:
        return StepEvidence(1, 0.0, 0.0)
    low, high = max(c.counts[0] for c in parts), min(c.counts[-1] for c in parts)
    counts = sorted({n for c in parts for n in c.counts if low <= n <= high})
    if len(counts) < 3:
        return StepEvidence(len(counts), 0.0, 0.0)
    raw = np.sum([np.interp(counts, c.counts, c.raw) for c in parts], axis=0)
    fit = np.maximum(np.sum([c.at(counts) for c in parts], axis=0), 1e-9)
    apart = [np.interp(counts, c.counts, [f.upper - f.lower for _, f in c.points]) for c in parts]
    typical = _SURE * float(np.median(np.sqrt(np.sum(np.square(apart), axis=0)) / fit))
    highest = np.maximum(np.maximum.accumulate(raw), 1e-9)
    fall = float(((highest - raw) / highest).max())
    return StepEvidence(
        len(counts), max(typical, fall), _largest_step(np.asarray(counts, float), fit)
    )


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
