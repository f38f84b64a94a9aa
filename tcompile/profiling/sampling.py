"""The steps of a method that are measured or modelled, to know what its steps take."""

from __future__ import annotations

from itertools import pairwise

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place

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
