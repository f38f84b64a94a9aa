"""At which token counts to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tcompile.profiling.curve import Figure

#: Counts at first, besides the dense model's.
_FIRST = 6
#: No two counts are nearer to each other than that.
_NARROW = 8
#: A share of the patches: no plan goes below it.
_LEAST = 0.05


def settled(tokens: float, prefix: int, grain: int) -> int:
    """The nearest count that may be: patches in whole groups, else a multiple of eight."""
    if grain > 1:
        return prefix + max(round((tokens - prefix) / grain), 1) * grain
    return max(8 * round(tokens / 8), prefix + 1)


def first_counts(tokens: int, prefix: int, grain: int) -> list[int]:
    """Evenly spread below the dense model's, the least first."""
    least = prefix + max(int(_LEAST * (tokens - prefix)), grain)
    spread = np.linspace(least, tokens, _FIRST + 1)[:-1]
    return sorted({c for c in (settled(n, prefix, grain) for n in spread) if c < tokens})


def refined(
    points: Sequence[tuple[int, Figure]], prefix: int, grain: int, tolerance: float
) -> list[int]:
    """Counts between two that were measured, where latency may not be a line.

    A point that lies further from the line through its neighbours than the tolerance, and than the
    spread of the three, has a step beside it: both intervals around it are halved. An interval
    wider than a sixth of all is halved in any case.

    Args:
        points: (tokens, figure), ascending.
        tolerance: a share of the largest time.
    """
    if len(points) < 3:
        return []
    counts, all_ms = [n for n, _ in points], [f.ms for _, f in points]
    most = max(all_ms)
    wide = (counts[-1] - counts[0]) / 6
    split = {(a, b) for a, b in pairwise(counts) if b - a > wide}
    for (a, low), (b, middle), (c, high) in zip(points, points[1:], points[2:], strict=False):
        line = low.ms + (high.ms - low.ms) * (b - a) / (c - a)
        noise = max(f.upper - f.lower for f in (low, middle, high))
        if abs(middle.ms - line) > max(tolerance * most, noise):
            split |= {(a, b), (b, c)}
    found = []
    for a, b in sorted(split):
        count = settled((a + b) / 2, prefix, grain)
        if min(count - a, b - count) >= max(_NARROW // 2, grain):
            found.append(count)
    return found
