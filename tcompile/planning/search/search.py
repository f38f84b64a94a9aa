"""The schedule within a budget that loses least on images.

Losses of single steps do not add up, least of all where tokens merge: ten small steps lose far less
than one large one. So whole schedules are run, and little is run twice:

1. each method by a few shapes (`shapes.first_shapes`) and by the schedule that the prior holds for
   the best, on a few images; the worst methods are out;
2. around the best shape of each method that is left, its neighbours, round by round; and of the
   two best methods some schedules in which one takes over from the other;
3. the best of them on more images, and the best of those on all (successive halving);
4. the best one changed: some of its steps taken by another method, tokens moved between its steps,
   each change first on a few images, and on all where it promises something;
5. the best few, and each method's best, on more images: they differ by less than a few can tell.

The loss of a schedule is the mean over the images and the mean over its worst quarter, half each:
a map that is right on average and has holes on one image of ten is not what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.solver import rounded_up
from tcompile.planning.optimise.tables import Floats, Plan
from tcompile.planning.search.level import FINALISTS, Level
from tcompile.planning.search.shapes import Shape, Step, Steps, first_shapes, neighbours
from tcompile.planning.search.space import Space

#: (steps, images) → losses of the first images.
Measure = Callable[[Steps, int], Floats]


#: What the loss of a schedule is of its images' losses.
SUMMED_UP = "half the mean, half that of the worst quarter"


def summed_up(losses: Floats) -> float:
    """The loss of a schedule from those of images: their mean, and that of the worst quarter."""
    worst = np.sort(losses)[-max(len(losses) // 4, 1) :]
    return float(losses.mean() + worst.mean()) / 2


@dataclass(frozen=True)
class Weighed:
    """A schedule that was run: its steps, the plan, and the loss of each image."""

    steps: Steps
    plan: Plan
    losses: Floats = field(compare=False)

    @property
    def loss(self) -> float:
        return summed_up(self.losses)


@dataclass
class _Search:
    """What has been run so far.

    Attributes:
        seen: steps → what they lost, on as many images as they were run on.
        shapes: steps → the shape that they come from, where they come from one.
    """

    space: Space
    measure: Measure
    level: Level
    seen: dict[Steps, Weighed | None] = field(default_factory=dict)
    shapes: dict[Steps, Shape] = field(default_factory=dict)

    def look(self, steps: Steps, images: int) -> Weighed | None:
        """Run a schedule on so many images; None where it cannot be built."""
        known = self.seen.get(steps)
        if steps in self.seen and (known is None or len(known.losses) >= images):
            return known
        try:
            losses = self.measure(steps, images)
        except UsageError:  # the reducer or the model cannot do these steps in turn
            self.seen[steps] = None
            return None
        self.seen[steps] = Weighed(steps, self.space.plan(steps), losses)
        return self.seen[steps]

    def try_shapes(self, method: int, shapes: Iterable[Shape]) -> None:
        """Run a method's shapes on a few images."""
        for shape in shapes:
            steps = self.space.fitted(method, shape)
            if steps is not None and steps not in self.seen:
                self.shapes[steps] = shape
                self.look(steps, self.level.look)

    def ranked(self, images: int, method: int | None = None) -> list[Weighed]:
        """What was run on so many images, from the least loss on the first of them."""
        found = [w for w in self.seen.values() if w is not None and len(w.losses) >= images]
        if method is not None:
            found = [w for w in found if {s.method for s in w.steps} == {method}]
        return sorted(found, key=lambda w: (summed_up(w.losses[:images]), w.plan.latency_ms))

    def promising(self, steps: Steps, best: Weighed) -> Weighed | None:
        """Run on all images what loses less than the best on a few; None where it does not."""
        few = self.look(steps, self.level.look)
        if few is None or summed_up(few.losses[: self.level.look]) > summed_up(
            best.losses[: self.level.look]
        ):
            return None
        return self.look(steps, self.level.images)


def search(space: Space, measure: Measure, level: Level) -> list[Weighed]:
    """The schedules that were run on the most images, from the least loss on.

    Args:
        measure: runs a schedule.

    Raises:
        UsageError: no schedule of any method keeps to the budget.
    """
    run = _Search(space, measure, level)
    blocks = space.options[0].tables.blocks
    methods = range(len(space.options))
    for method in methods:
        run.try_shapes(method, first_shapes(blocks))
        if steps := space.by_prior(method):
            run.look(steps, level.look)
    for _ in range(level.rounds):
        for method in _best_methods(run, methods, level.refine):
            ranked = run.ranked(level.look, method)
            if best := next((s for w in ranked if (s := run.shapes.get(w.steps))), None):
                run.try_shapes(method, neighbours(best, blocks))
    if not run.ranked(level.look):
        raise _nothing_fits(space)
    _mix(run, _best_methods(run, methods, 2))
    images = level.look
    keep = level.promote
    while images < level.images:
        chosen = run.ranked(images)[:keep]
        images, keep = min(2 * images, level.images), max(keep // 2, 2)
        if images == level.images:  # each method by its best, so that they can be compared
            chosen += [r[0] for m in methods if (r := run.ranked(level.look, m))]
        for one in chosen:
            run.look(one.steps, images)
    _improve(run)
    for one in _finalists(run, methods):
        run.look(one.steps, level.last)
    return run.ranked(level.last)


def _finalists(run: _Search, methods: Sequence[int]) -> list[Weighed]:
    images = run.level.images
    return run.ranked(images)[:FINALISTS] + [
        best[0] for m in methods if (best := run.ranked(images, m))
    ]


def _best_methods(run: _Search, methods: Sequence[int], most: int) -> list[int]:
    best = {m: run.ranked(run.level.look, m)[:1] for m in methods}
    with_any = [m for m in methods if best[m]]
    return sorted(with_any, key=lambda m: best[m][0].loss)[:most]


def _mix(run: _Search, methods: Sequence[int]) -> None:
    """Run schedules whose earlier steps are of one method and whose later ones of another."""
    space = run.space
    blocks = space.options[0].tables.blocks
    for one, other in permutations(methods, 2):
        for shape in list(first_shapes(blocks))[::2]:
            steps = space.fitted(one, shape)
            if steps is None or len(steps) < 2:
                continue
            mixed = _by_another(space, steps, range(len(steps) // 2, len(steps)), other)
            if mixed is not None and space.fits(mixed):
                run.look(mixed, run.level.look)


def _nothing_fits(space: Space) -> UsageError:
    fastest = space.fastest_ms()
    return UsageError(
        f"no plan takes at most {space.most_ms:.4g} ms: the fastest that was tried takes "
        f"{fastest:.4g} ms",
        where="--latency",
        hint=f"ask for --latency {rounded_up(fastest)} or more",
    )


def _improve(run: _Search) -> None:
    """Change the best schedule as long as that helps."""
    left = run.level.moves
    best = run.ranked(run.level.images)[0]
    moved = True
    while moved and left > 0:
        moved = False
        for steps in _changes(
            run.space, best.steps, [w.steps for w in run.ranked(run.level.images)]
        ):
            if left <= 0:
                break
            if steps in run.seen or not run.space.fits(steps):
                continue
            left -= 1
            found = run.promising(steps, best)
            if found is not None and found.loss < best.loss:
                best, moved = found, True
                break


def _changes(space: Space, steps: Steps, others: Sequence[Steps]) -> Iterator[Steps]:
    """Schedules near one: its later or earlier half by another method, and tokens that leave a step
    earlier or later."""
    methods = list(dict.fromkeys(s.method for o in others for s in o))
    half = len(steps) // 2
    for method in methods:
        for chosen in (range(half, len(steps)), range(half), range(len(steps))):
            if len(steps) > 1 and (swapped := _by_another(space, steps, chosen, method)):
                yield swapped
    for size in (1.0, 0.5):
        for i in range(len(steps) - 1):
            for sign in (1, -1):
                if moved := _shifted(space, steps, i, sign * size):
                    yield moved


def _by_another(space: Space, steps: Steps, chosen: Iterable[int], method: int) -> Steps | None:
    """Some of the steps taken by another method, in the same blocks to the same counts."""
    room, found, before = space.rooms[method], list(steps), space.rooms[method].counts[-1]
    taken = set(chosen)
    for i, step in enumerate(steps):
        if i in taken and step.method != method:
            name = space.rooms[step.method].sites[step.site].name
            at = room.by_block.get(name.block if name.block is not None else -1)
            after = None if at is None else room.reached(room.sites[at], before, step.after)
            if at is None or after is None:
                return None
            found[i] = Step(method, at, after)
        before = found[i].after
    changed = tuple(found)
    return changed if changed != steps and space.final in (None, before) else None


def _shifted(space: Space, steps: Steps, i: int, share: float) -> Steps | None:
    """A share of what leaves at a step leaves at the one before or behind it instead."""
    room = space.rooms[steps[i].method]
    before = steps[i - 1].after if i else room.counts[-1]
    behind = steps[i + 1].after
    leave = (before - steps[i].after) if share > 0 else (steps[i].after - behind)
    after = room.reached(room.sites[steps[i].site], before, steps[i].after + share * leave * 0.5)
    if after is None or not behind < after or after == steps[i].after:
        return None
    following = space.rooms[steps[i + 1].method]
    if following.reached(following.sites[steps[i + 1].site], after, behind) != behind:
        return None
    return (*steps[:i], replace(steps[i], after=after), *steps[i + 1 :])
