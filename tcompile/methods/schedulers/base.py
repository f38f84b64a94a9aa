"""Schedulers as data, the places that they give, and exact arithmetic of token counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

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


@dataclass(frozen=True)
class Scheduler:
    """A rule for how many tokens leave where.

    Attributes:
        words: for `tcompile methods`.
        run: (context, parameters) → the places, in order.
        notes: what the plan is to say of it.
        observes: the scores that it wants to see on images, as `Context.calibration`.
    """

    words: str
    run: Callable[[Context, Values], list[Place]]
    notes: Callable[[Context, Values], tuple[str, ...]] = lambda context, values: ()
    observes: tuple[Spec, ...] = ()


Run = Callable[[Context, Values], list[Place]]


def scheduler(words: str) -> Callable[[Run], Callable[[], Scheduler]]:
    """Make a function of a context and parameters a factory of its scheduler."""

    def factory(run: Run) -> Callable[[], Scheduler]:
        def made() -> Scheduler:
            return Scheduler(words, run)

        made.__name__, made.__doc__ = run.__name__, run.__doc__
        return made

    return factory


def falling(context: Context, goals: Iterable[tuple[SiteName, int]]) -> list[Place]:
    """(site, patch tokens after it) as places, those left out where nothing leaves."""
    found, count = list[Place](), context.shape.patches
    for site, goal in goals:
        if goal < count:
            found.append(Place(site, goal))
            count = goal
    return found


def after_blocks(
    context: Context, counts: Iterable[int], first: int = 0, *, half: bool = False
) -> list[Place]:
    """Patch tokens after each block from the first on, as `places`."""
    sites = map(context.site, range(first, context.shape.blocks))
    return places(context, zip(sites, counts, strict=True), half=half)


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
    goals = list(wanted)
    if not half:
        goals = [(site, max(goal, 1)) for site, goal in goals]
    else:
        for i in range(len(goals) - 1, 0, -1):
            goals[i - 1] = (goals[i - 1][0], min(goals[i - 1][1], 2 * goals[i][1]))
        for i, (site, goal) in enumerate(goals):
            count = min(max(goal, count - count // 2), count)
            goals[i] = (site, count)
    found = falling(context, goals)
    count = found[-1].keep if found else total
    if context.keep is not None and count > context.final:
        once = "once" if len(goals) == 1 else f"{len(goals)} times"
        raise UsageError(
            f"{context.method} can merge {total} tokens down to {count} at best, not "
            f"{context.final}, halving them {once}",
            where="--keep",
        )
    return found


def root_ceil(total: int, keep: Fraction, i: int, n: int) -> int:
    """ceil(total · keep^(i/n)), exact: the least m with m^n ≥ total^n · keep^i."""
    goal = Fraction(total) ** n * keep**i
    m = int(total * float(keep) ** (i / n))
    while Fraction(m) ** n >= goal and m > 0:
        m -= 1
    while Fraction(m) ** n < goal:
        m += 1
    return m


def half_up(number: Fraction) -> int:
    """The nearest whole number, halves up."""
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)


def shares(total: int, final: int, weights: Sequence[Fraction | int]) -> list[int]:
    """Counts from `total` to exactly `final`, what leaves shared out by weight.

    Raises:
        ZeroDivisionError: all weights are 0.
    """
    whole, so_far, found = Fraction(sum(weights)), Fraction(0), []
    for weight in weights:
        so_far += weight
        found.append(total - half_up((total - final) * so_far / whole))
    return found


def inflected(r: int, inflect: Fraction, steps: int) -> list[int]:
    """ToMe's r_i = int(least + step · i), least = int(r (1 − inflect)), most = 2 r − least."""
    least = int(r * (1 - inflect))
    step = Fraction(2 * r - 2 * least, max(steps - 1, 1))
    return [int(least + step * i) for i in range(steps)]
