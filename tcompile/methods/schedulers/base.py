"""What a scheduler is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values


@dataclass(frozen=True)
class Place:
    """A point where tokens leave: the site, and how many patch tokens go on."""

    site: SiteName
    keep: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", SiteName(self.site))  # people write text


def _no_notes(context: Context, values: Values) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Scheduler:
    """How many tokens leave where.

    Attributes:
        words: for `tcompile methods`.
        run: (context, parameters) → the places, in order.
        notes: what the plan is to say of it.
        observes: the scores that it wants to see on images, as `Context.calibration`.
    """

    words: str
    run: Callable[[Context, Values], list[Place]]
    notes: Callable[[Context, Values], tuple[str, ...]] = _no_notes
    observes: tuple[Spec, ...] = ()


def places(
    context: Context, wanted: Iterable[tuple[SiteName, int]], *, half: bool = False
) -> list[Place]:
    """Sites and counts as places, where something leaves.

    Args:
        wanted: (site, patch tokens after it).
        half: only half of the tokens can find a partner in one step; more leave before one that
            would take more.

    Raises:
        UsageError: the budget is out of reach that way.
    """
    total = count = context.shape.patches
    goals, found = list(wanted), list[Place]()
    if half:
        for i in range(len(goals) - 1, 0, -1):
            goals[i - 1] = (goals[i - 1][0], min(goals[i - 1][1], 2 * goals[i][1]))
    for site, goal in goals:
        leave = max(goal, count - count // 2 if half else 1)
        if leave < count:
            found.append(Place(site, leave))
            count = leave
    if context.keep is not None and count > context.final:
        once = "once" if len(goals) == 1 else f"{len(goals)} times"
        raise UsageError(
            f"{context.method} can merge {total} tokens down to {count} at best, not "
            f"{context.final}, halving them {once}",
            where="--keep",
        )
    return found
