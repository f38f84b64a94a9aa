"""From a plan to a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.core.schedule import Schedule
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.planning.optimise import Plan


def schedule_of(method: Method, plan: Plan, notes: Sequence[str] = ()) -> Schedule:
    """A method's steps at a plan's sites; counts lose the prefix.

    Raises:
        UsageError: the reducer cannot do them one after another.
    """
    prefix = method.context.shape.prefix
    places = [Place(step.site, step.after - prefix) for step in plan.steps]
    return method.schedule(places, notes)
