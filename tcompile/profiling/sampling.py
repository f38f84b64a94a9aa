"""Which steps of a method are looked at to know what its steps take."""

from __future__ import annotations

from itertools import pairwise

from tcompile.errors import UsageError
from tcompile.planning.schedulers import Place
from tcompile.planning.solve.method import Method
from tcompile.profiling.measure import _STEPS

Steps = list[tuple[str, int]]


def sampled(method: Method) -> list[Steps]:
    """Schedules as (site, patches that stay), whose steps lie at the points that a measurement
    takes too: from a share of the patches, to a share of that.

    The sites are as early as they can be, so that what follows has all structures of the blocks. A
    schedule whose steps all others have is left out.
    """
    shape = method.context.shape
    grain = max(rule.granularity for rule in method.sites)
    found: list[Steps] = []
    for start, share in _STEPS:
        before = _whole(start * shape.patches, grain)
        steps = _to(method, before, _whole(start * share * shape.patches, grain))
        if steps and steps not in found:
            found.append(steps)
    found.sort(key=len, reverse=True)
    known: set[tuple[int, int]] = set()
    needed: list[Steps] = []
    for steps in found:
        counts = [shape.patches, *(keep for _, keep in steps)]
        pairs = set(pairwise(counts))
        if pairs - known:
            known |= pairs
            needed.append(steps)
    return needed


def _whole(patches: float, grain: int) -> int:
    return max(round(patches / grain), 1) * grain


def _to(method: Method, before: int, after: int) -> Steps | None:
    """Steps that end with one from `before` to `after` patches; None: it cannot."""
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
        steps = [*places, Place(free[0].name, after)]
        method.schedule(steps)
    except UsageError:
        return None
    return [(p.site, p.keep) for p in steps]
