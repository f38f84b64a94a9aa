"""The first look at methods: one schedule on a few images, before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.planning.optimise.tables import Floats
from tcompile.planning.search.evidence import Runs
from tcompile.planning.search.search import summed_up
from tcompile.planning.search.shapes import Room, Shape, Steps
from tcompile.planning.search.space import joined

#: Losses that a method may have, over that of the best, and be looked at further.
_WORSE = 4.0


def screened(methods: Sequence[Method], runs: Runs, final: int | None) -> list[Method]:
    """The methods that lose least, at most as many as the level says, the best one first.

    Each takes the same steps over the first half of the depth. The times that they take are not
    looked at, so that a method which loses little and costs much is still among them.

    Args:
        final: whole tokens that are left in the end; None: half of the patches.
    """
    if len(methods) == 1:
        return list(methods)
    shape = methods[0].context.shape
    final = final or shape.prefix + max(shape.patches // 2, 1)
    spread = Shape(0, shape.blocks // 2)
    runs.expect(len(methods) * runs.level.look + runs.level.work(runs.level.methods))
    found: list[tuple[float, int, Method]] = []
    for number, method in enumerate(methods):
        losses = _losses(method, spread, final, runs)
        if losses is not None:
            found.append((summed_up(losses), number, method))
    if not found:
        return list(methods)
    ranked = sorted(found)
    kept = [one for one in ranked if one[0] <= _WORSE * ranked[0][0]]
    return [method for _, _, method in kept[: runs.level.methods]]


def _losses(method: Method, shape: Shape, final: int, runs: Runs) -> Floats | None:
    """The losses of a method that takes the steps of a shape; None where it cannot."""
    model = method.context.shape
    counts = tuple(range(model.prefix + 1, model.tokens + 1))
    room = Room(0, method.sites, counts, model.prefix, model.blocks)
    steps: Steps | None = room.steps(shape, final)
    if steps is None:
        return None
    places = [Place(room.sites[s.site].name, s.after - model.prefix) for s in steps]
    try:
        return runs.losses(joined([method] * len(places), places), runs.level.look)
    except UsageError:  # the reducer or the model cannot do these steps in turn
        return None
