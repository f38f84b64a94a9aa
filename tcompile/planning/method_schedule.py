"""The schedule that a method has of its own for a model, or that someone wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcompile.analysis.model import Analysis
from tcompile.core.schedule import Schedule, read_schedule
from tcompile.methods.composition import compose
from tcompile.methods.context import SiteConstraints
from tcompile.passes.reduce.check import check_schedule, dense_grid
from tcompile.passes.stages import Analysed
from tcompile.planning.request import Keep

ScheduleLike = str | Path | Mapping[str, Any] | Schedule


def schedule_for(
    model: Analysed,
    keep: Keep = None,
    method: str = "topk",
    outputs: str = "reduced",
    calibration: str | Path | None = None,
) -> Schedule:
    """A method's own schedule for a budget, checked against the model.

    Args:
        calibration: images, for methods that learn their counts from them; see `build`.

    Raises:
        UsageError: no budget or two, parameters that do not fit the model, or an illegal site.
    """
    analysis, observe = model.analysis, None
    if calibration is not None:
        from tcompile.methods.calibration import observer

        observe = observer(model.graph, analysis, model.source, calibration)
    constraints = site_constraints(analysis, outputs)
    made = compose(method, analysis.shape, analysis.has_cls, keep, constraints, observe)
    check_schedule(analysis, made, outputs)
    return made


def checked_schedule(model: Analysed, schedule: ScheduleLike, outputs: str = "reduced") -> Schedule:
    """The schedule that someone gives, checked against the model.

    Raises:
        UsageError: not a schedule, one for another model, or an illegal site.
    """
    made = given_schedule(schedule)
    check_schedule(model.analysis, made, outputs)
    return made


def site_constraints(analysis: Analysis, outputs: str = "reduced") -> SiteConstraints:
    """Describe where a model lets tokens leave, as methods see it."""
    legal = [s for s in analysis.sites if not s.verdict(outputs).reason]
    groups = {s.name: s.step(outputs) for s in legal if s.step(outputs) > 1}
    unscored = frozenset(s.name for s in analysis.sites if not s.scored)
    windows = any(b.window for b in analysis.blocks)
    parallel = frozenset(b.index for b in analysis.blocks if b.parallel)
    names, grid = frozenset(s.name for s in legal), dense_grid(analysis)
    return SiteConstraints(names, groups, windows, parallel, unscored, grid)


def given_schedule(schedule: ScheduleLike) -> Schedule:
    """A schedule that someone gives: read from a file, made of a document, or as it is.

    Raises:
        UsageError: not a schedule.
    """
    if isinstance(schedule, Schedule):
        return schedule
    return (
        Schedule.from_json(schedule) if isinstance(schedule, Mapping) else read_schedule(schedule)
    )
