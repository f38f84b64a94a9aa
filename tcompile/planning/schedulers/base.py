"""What a scheduler is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tcompile.errors import UsageError
from tcompile.planning.context import Context, Values
from tcompile.planning.schedule import Spec


@dataclass(frozen=True)
class Place:
    """A point where tokens leave: the site, and how many patch tokens go on."""

    site: str
    keep: int


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
    context: Context, goals: Iterable[tuple[str, int]], *, half: bool = False
) -> list[Place]:
    """Sites and counts as places, where something leaves.

    Args:
        goals: (site, patch tokens after it).
        half: only half of the tokens can find a partner in one step.

    Raises:
        UsageError: the budget is out of reach that way.
    """
    total = count = context.shape.patches
    found: list[Place] = []
    for site, goal in goals:
        leave = max(goal, count - count // 2 if half else 1)
        if leave < count:
            found.append(Place(site, leave))
            count = leave
    if context.keep is not None and count > context.final:
        raise UsageError(
            f"{context.method} can merge {total} tokens down to {count} at best, not "
            f"{context.final}, in {context.shape.blocks} blocks",
            where="--keep",
        )
    return found
