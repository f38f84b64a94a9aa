"""Plateaus: latency falls in steps as tokens leave, and on a step more tokens cost nothing.

The right edge of a count n is the largest n' ≥ n with t(n') ≤ (1 + ε)·t(n). Plateaus cut all counts
into runs from the left: each begins where the last one ended, at n, and ends at n's right edge. On
a smooth slope they are what ε makes them; on a staircase, its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError

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
