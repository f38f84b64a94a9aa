"""The schedule that a method has of its own for a model, or that someone wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule, read_schedule
from tcompile.methods.composition import SiteConstraints, compose
from tcompile.passes.reduce.check import check_schedule, dense_grid
from tcompile.planning.request import Keep

if TYPE_CHECKING:
    from tcompile.passes.stages import Analysed

ScheduleLike = str | Path | Mapping[str, Any] | Schedule | None


def schedule_for(
    model: Analysed,
    keep: Keep = None,
    method: str = "topk",
    schedule: ScheduleLike = None,
    outputs: str = "reduced",
    calibration: str | Path | None = None,
) -> Schedule:
    """A method's own schedule for a budget, or the one given, checked against the model.

    Args:
        calibration: images, for methods that learn their counts from them; see `build`.

    Raises:
        UsageError: no budget or two, an illegal site, a schedule for another model.
    """
    if schedule is not None:
        if keep is not None:
            raise UsageError(
                "--keep and --schedule both set the budget",
                where="--schedule",
                hint="give one of them",
            )
        if calibration is not None:
            raise UsageError(
                "a schedule learns nothing from images", where="--calibration", hint="leave it away"
            )
        made = given_schedule(schedule)
    else:
        analysis = model.analysis
        room = site_constraints(analysis, outputs)
        observe = None
        if calibration is not None:
            from tcompile.methods.calibration import observer

            observe = observer(model.graph, analysis, model.source, calibration)
        made = compose(method, analysis.shape, analysis.has_cls, keep, room, observe)
    check_schedule(model.analysis, made, outputs)
    return made


def site_constraints(analysis: Analysis, outputs: str = "reduced") -> SiteConstraints:
    """Where a model lets tokens leave, as methods see it."""
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
    if isinstance(schedule, Mapping):
        return Schedule.from_json(schedule)
    assert schedule is not None
    return read_schedule(schedule)
