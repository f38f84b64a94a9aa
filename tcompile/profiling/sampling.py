"""The token counts, and the steps of a method, that are measured or modelled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.profiling.curve import Figure

#: (site, patches that stay) of each reduction.
Keeps = list[tuple[str, int]]
#: Steps that are measured or modelled: from a share of the patches, to a share of that.
STEPS = (
    (1.0, 0.9),
    (1.0, 0.7),
    (1.0, 0.5),
    (0.7, 0.9),
    (0.7, 0.6),
    (0.5, 0.9),
    (0.5, 0.5),
    (0.3, 0.7),
)


def sampled(method: Method) -> list[Keeps]:
    """Schedules as (site, patches that stay), whose steps lie at the points that a measurement
    takes too: from a share of the patches, to a share of that.

    The sites are as early as they can be, so that what follows has all structures of the blocks. A
    schedule whose steps all others have is left out.
    """
    shape = method.context.shape
    grain = max(rule.granularity for rule in method.sites)
    found: list[Keeps] = []
    for start, share in STEPS:
        before = whole(start * shape.patches, grain)
        steps = steps_to(method, before, whole(start * share * shape.patches, grain))
        if steps and steps not in found:
            found.append(steps)
    found.sort(key=len, reverse=True)
    known: set[tuple[int, int]] = set()
    needed: list[Keeps] = []
    for steps in found:
        counts = [shape.patches, *(keep for _, keep in steps)]
        pairs = set(pairwise(counts))
        if pairs - known:
            known |= pairs
            needed.append(steps)
    return needed


def whole(patches: float, grain: int) -> int:
    """The nearest number of patches that are whole groups."""
    return max(round(patches / grain), 1) * grain


def steps_to(method: Method, before: int, after: int, *, deep: bool = False) -> Keeps | None:
    """Steps that end with one from `before` to `after` patches; None: the method cannot.

    Args:
        deep: the last one is at the middle of the sites that are left, not at the first.
    """
    shape = method.context.shape
    if not after < before <= shape.patches:
        return None
    try:
        places = method.descend(before) if before < shape.patches else []
        used = {p.site for p in places}
        last = max((r.place(shape.blocks)[0] for r in method.sites if r.name in used), default=-1)
        free = [r for r in method.sites if r.place(shape.blocks)[0] > last]
        if (places and places[-1].keep != before) or not free:
            return None
        steps = [*places, Place(free[len(free) // 2 if deep else 0].name, after)]
        method.schedule(steps)
    except UsageError:
        return None
    return [(p.site, p.keep) for p in steps]


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
