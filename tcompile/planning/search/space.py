"""Schedules within a budget: what they take, and the shapes that use up what is allowed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import fsum

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.passes.reduce.check import check_schedule
from tcompile.planning.optimise import tables as optimise
from tcompile.planning.optimise.chain import Limits
from tcompile.planning.optimise.solver import solve
from tcompile.planning.optimise.tables import Plan
from tcompile.planning.options.method_tables import MethodTables
from tcompile.planning.search.shapes import Room, Shape, Step, Steps, first_shapes

#: Rounding of sums of latencies.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Space:
    """The schedules of several methods that keep to a budget.

    Attributes:
        options: methods with their latencies, all on one grid of counts.
        most_ms: of one batch.
        final: whole tokens that are to be left in the end; None: as many as the budget allows.
        restore: the rule by which restored outputs give tokens back, where one was asked for.
    """

    options: tuple[MethodTables, ...]
    most_ms: float
    final: int | None
    restore: str | None = None

    @cached_property
    def rooms(self) -> tuple[Room, ...]:
        """The sites and counts of each method."""
        return tuple(
            Room(i, o.tables.sites, o.tables.counts, o.tables.prefix, o.tables.blocks)
            for i, o in enumerate(self.options)
        )

    def plan(self, steps: Steps) -> Plan:
        """The latency of a schedule: each half of a block as behind the step before it."""
        tables = self.options[steps[0].method if steps else 0].tables
        counts, at = tables.counts, len(tables.counts) - 1
        places = {
            self.options[s.method].tables.sites[s.site].place(tables.blocks): s for s in steps
        }
        costs, taken = [tables.stem_ms], list[optimise.Step]()
        carried: tuple[list[int], list[int]] = ([], [])
        for block, half in product(range(tables.blocks), range(3)):
            if half < 2:
                carried[half].append(counts[at])
                costs.append(float((tables.attn_ms, tables.mlp_ms)[half][block, at]))
            step = places.get((block, half))
            if step is None:
                continue
            tables = self.options[step.method].tables
            to = bisect_left(counts, step.after)
            ms = float(tables.reducer_ms[step.site][at, to])
            name = tables.sites[step.site].name
            taken.append(optimise.Step(name, counts[at], step.after, ms, None))
            at = to
        costs += [float(tables.head_ms[at]), *(step.ms for step in taken)]
        return Plan(
            tuple(taken),
            tuple(carried[0]),
            tuple(carried[1]),
            counts[at],
            fsum(costs),
            0.0,
            self.options[0].tables.dense_ms,
        )

    def fits(self, steps: Steps) -> bool:
        """Tell whether a schedule is fast enough."""
        return self.plan(steps).latency_ms <= self.most_ms * (1 + _ROUNDING)

    def fitted(self, method: int, shape: Shape) -> Steps | None:
        """A shape as slow as it may be: with a count to end with, its last step as late as that
        allows; else with the most tokens. None where nothing of the shape is fast enough."""
        room = self.rooms[method]
        if self.final is not None:
            shapes = [replace(shape, last=last) for last in range(shape.last, shape.first - 1, -1)]
            return self._first_fit([room.steps(s, self.final) for s in shapes])
        low, high = 0, len(room.counts) - 1  # of counts, the first that is too slow
        best: Steps | None = None
        while low < high:
            middle = (low + high) // 2
            steps = room.steps(shape, room.counts[middle])
            if steps is not None and self.fits(steps):
                best, low = steps, middle + 1
            elif steps is None:
                low = middle + 1  # so few tokens cannot be reached
            else:
                high = middle
        return best

    def by_prior(self, method: int) -> Steps | None:
        """The steps of a method that lose least by the prior; None where none are fast enough."""
        tables, final = self.options[method].tables, self.final
        limits = Limits() if final is None else Limits(final_least=final, final_most=final)
        try:
            plan = solve(tables, self.most_ms, limits)
        except UsageError:
            return None
        sites = {rule.name: i for i, rule in enumerate(tables.sites)}
        return tuple(Step(method, sites[step.site], step.after) for step in plan.steps)

    def _first_fit(self, found: Sequence[Steps | None]) -> Steps | None:
        return next((s for s in found if s is not None and self.fits(s)), None)

    def fastest_ms(self) -> float:
        """The ms of the fastest schedule of the first shapes, whatever the budget."""
        found = [
            self.plan(steps).latency_ms
            for room in self.rooms
            for shape in first_shapes(room.blocks)
            for steps in self._fewest(room, shape)
        ]
        return min(found, default=self.options[0].tables.dense_ms)

    def _fewest(self, room: Room, shape: Shape) -> Sequence[Steps]:
        """The steps of a shape down to the fewest tokens, or as early as can be."""
        if self.final is not None:
            lasts = range(shape.first, shape.last + 1)
            made = (room.steps(replace(shape, last=last), self.final) for last in lasts)
        else:
            made = (room.steps(shape, count) for count in room.counts)
        return [s for s in made if s is not None][:1]

    def schedule(self, steps: Steps, notes: Sequence[str] = ()) -> Schedule:
        """The schedule of steps, of one method or of several.

        Raises:
            UsageError: a reducer or the model cannot do them one after another.
        """
        methods = [self.options[s.method].method for s in steps]
        prefix = self.options[0].tables.prefix
        places = [
            Place(self.options[s.method].tables.sites[s.site].name, s.after - prefix) for s in steps
        ]
        return replace(joined(methods, places, notes), restore=self.restore)


def joined(
    methods: Sequence[Method], places: Sequence[Place], notes: Sequence[str] = ()
) -> Schedule:
    """The schedule of places, each with the method that takes the step there.

    Raises:
        UsageError: a reducer or the model cannot do them one after another.
    """
    each = list(dict.fromkeys(methods))
    if len(each) <= 1:
        return each[0].schedule(places, notes)
    made = {m: m.composed(places) for m in each}
    if any(len(one) != len(places) for one in made.values()):
        raise UsageError("goes by counts of its own", where="--method")
    steps: list[Reduction] = [made[m][i] for i, m in enumerate(methods)]
    text = " + ".join(m.text for m in each)
    schedule = Schedule(text, each[0].context.shape, tuple(steps), notes=tuple(notes))
    check_schedule(each[0].analysis, schedule, each[0].outputs)
    return schedule
