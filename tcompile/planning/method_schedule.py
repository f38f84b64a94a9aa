"""The schedule that a method has of its own for a model, or that someone wrote; and what leaves the
model's other towers, which follow the one that was planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, TowerSchedule, read_schedule
from tcompile.core.site import SiteName
from tcompile.methods.composition import compose, parse_method, score_fallback
from tcompile.methods.context import Context
from tcompile.passes.reduce.check import check_schedule, without_schedule
from tcompile.passes.reduce.reducers import reducer_of
from tcompile.passes.reduce.scores import leaves
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.planning.remedy import remedy
from tcompile.planning.request import NO_IMAGES, Keep
from tcompile.planning.resolution import is_resolution, resolution_schedule

if TYPE_CHECKING:
    from tcompile.methods.calibration import Observe
    from tcompile.runtime.samples import Samples

#: Scenes that methods learn their counts on where a person gives no images.
_SCENES = 16

ScheduleLike = str | Path | Mapping[str, Any] | Schedule


def schedule_for(
    model: Analysed,
    keep: Keep = None,
    method: str = "topk",
    outputs: str = "reduced",
    calibration: str | Path | None = None,
    preprocess: str | None = None,
    asked: str | None = None,
    image: str = "graph",
) -> Schedule:
    """A method's own schedule for a budget, checked against the model.

    Args:
        asked: the method that a person named, where this one stands in for it.
        calibration: images, for methods that learn their counts from them; see `build`. None:
            procedural scenes; `none`: no images.
        preprocess: how they are prepared, in place of what the model records.
        image: who makes it smaller for `resolution`: `graph` or `host`.

    Raises:
        UsageError: no budget or two, parameters that do not fit the model, or an illegal site.
    """
    if is_resolution(method):
        return resolution_schedule(model, keep, method, outputs, image)
    analysis = model.analysis
    notes: list[str] = []
    # With restored outputs images also say how tokens are given back (`planning.restoring`).
    learns = outputs == "reduced" or parse_method(method)[0].scheduler.observes
    observe = _observer(model, method, calibration, preprocess, notes) if learns else None
    constraints = site_constraints(analysis, outputs)
    made = compose(method, analysis.shape, analysis.has_cls, keep, constraints, observe)
    try:
        check_schedule(analysis, made, outputs)
    except UsageError as error:
        named = asked or method
        hint = remedy(model, named, keep, outputs)
        raise UsageError(without_schedule(error), where=f"--method {named}", hint=hint) from error
    return replace(made, notes=(*made.notes, *notes))


def _observer(
    model: Analysed,
    method: str,
    calibration: str | Path | None,
    preprocess: str | None,
    notes: list[str],
) -> Observe | None:
    """What a method that learns its counts sees of images: a person's, else procedural scenes.

    Args:
        notes: what there is to say of the images is added to them.
    """
    from tcompile.methods.calibration import observer
    from tcompile.planning.losses.data import read_calibration, signature_of
    from tcompile.runtime.scenes import scenes_for

    if calibration == NO_IMAGES:
        return None
    if calibration is not None:
        given = calibration

        def read() -> Samples:
            samples = read_calibration(signature_of(model, preprocess), given).samples
            notes.extend([f"calibration: {samples.left_out}"] if samples.left_out else [])
            return samples

        return observer(model.graph, model.analysis, read)
    if not parse_method(method)[0].scheduler.observes:
        return None
    scenes = scenes_for(signature_of(model, preprocess), count=_SCENES, seed=1)
    if not scenes.scenes:
        return None
    notes.append(f"its counts are learned on {scenes.source}: your own images say more")
    return observer(model.graph, model.analysis, lambda: scenes)


def checked_schedule(model: Analysed, schedule: ScheduleLike, outputs: str = "reduced") -> Schedule:
    """The schedule that someone gives, checked against the model.

    Raises:
        UsageError: not a schedule, one for another model, or an illegal site.
    """
    made = given_schedule(schedule)
    if made.resized is not None:
        return made  # it is checked where it is applied, all of it at once
    check_schedule(model.analysis, made, outputs)
    return made


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


def for_towers(analysis: Analysis, schedule: Schedule, outputs: str = "reduced") -> Schedule:
    """The schedule with what leaves every other tower: what it says itself, or else the same.

    For a tower of another shape, its sites are at the same share of the depth and its counts are
    the same share of the patches. Nothing leaves the others where one tower was chosen by name.

    Raises:
        UsageError: it names a tower that there is not, or leaves one out.
    """
    if schedule.towers is not None:
        _check_names(analysis, schedule.towers)
        return schedule
    if not schedule.reductions or not (analysis.others or analysis.chosen):
        return schedule
    towers = tuple(_follow(analysis, other, schedule, outputs) for other in analysis.others)
    return replace(schedule, tower=analysis.tower, towers=towers)


def _check_names(analysis: Analysis, towers: Iterable[TowerSchedule]) -> None:
    has, said = [a.tower for a in analysis.others], [t.tower for t in towers]
    if sorted(has) != sorted(said):
        names = ", ".join([analysis.tower, *has])
        raise UsageError(
            f"is for tower '{analysis.tower}' beside {', '.join(said) or 'none'}; the model has "
            f"{names}",
            where="schedule",
            hint="omit `towers`: they follow the first one",
        )


def _follow(analysis: Analysis, other: Analysis, schedule: Schedule, outputs: str) -> TowerSchedule:
    if analysis.chosen:
        return TowerSchedule(other.tower, other.shape, (), f"'{analysis.tower}' was chosen")
    if other.shape == analysis.shape and other.has_cls == analysis.has_cls:
        return TowerSchedule(other.tower, other.shape, schedule.reductions)
    scaled = _scaled(analysis, other, schedule, outputs)
    why = "" if scaled else "it has too few patches for any of them to leave"
    return TowerSchedule(other.tower, other.shape, scaled, why)


def _scaled(
    analysis: Analysis, other: Analysis, schedule: Schedule, outputs: str
) -> tuple[Reduction, ...]:
    mine, its = analysis.shape, other.shape
    room = site_constraints(other, outputs)
    context = Context(schedule.method, its, other.has_cls, None, room)
    found: dict[str, Reduction] = {}
    for one in schedule.reductions:
        name, block = one.site, one.site.block
        if block is not None:
            block = ceil(Fraction((block + 1) * its.blocks, mine.blocks)) - 1
            name = SiteName.of(one.site.kind, block)
        group = room.groups.get(name, 1)
        keep = ceil(Fraction(one.keep * its.patches, mine.patches * group)) * group
        score = None if one.score is None else score_fallback(one.score, context, name)
        found[name] = Reduction(name, score, one.reducer, keep)
    count, kept = its.patches, []
    for one in found.values():
        if not reducer_of(one.reducer).returns and one.keep >= count:
            continue
        kept.append(one)
        count = count if one.site.returns else one.keep
    return tuple(kept)


def tower_notes(schedule: Schedule, analysis: Analysis) -> list[str]:
    """Notes on the other towers, on what stays dense, and on which tokens scores read."""
    if not schedule.reductions and not any(t.reductions for t in schedule.towers or ()):
        return []
    notes = [_note(schedule, tower) for tower in schedule.towers or ()]
    notes += [f"with tokens of their own, which all stay: {one}" for one in analysis.beside]
    towers = {a.tower: a for a in (analysis, *analysis.others)}
    mine = [(analysis, schedule.reductions)]
    mine += [(towers[t.tower], t.reductions) for t in schedule.towers or ()]
    for found, reductions in mine:
        notes += [n for n in _read(found, reductions) if n not in notes]
    return notes


def _note(schedule: Schedule, tower: TowerSchedule) -> str:
    if not tower.reductions:
        return f"tower '{tower.tower}' stays dense: {tower.dense or 'nothing leaves it'}"
    if tower.reductions == schedule.reductions:
        return f"tower '{tower.tower}' loses tokens by the same schedule as '{schedule.tower}'"
    steps = ", ".join(f"{r.keep} at {r.site}" for r in tower.reductions)
    return f"tower '{tower.tower}' of {tower.model.patches} patches keeps {steps}"


def _read(analysis: Analysis, reductions: Iterable[Reduction]) -> list[str]:
    """Notes on the tokens and attentions that scores read, where that is not plain."""
    notes = []
    for one in reductions:
        specs = [
            *reducer_of(one.reducer).scores(one.reducer.parameters),
            *([] if one.score is None else [one.score]),
        ]
        scores = [pair for spec in specs for pair in leaves(spec)]
        site = analysis.site(one.site)
        if site is None:
            continue
        if any("cls" in s.needs(v) for s, v in scores) and len(analysis.readers) > 1:
            first, last = (
                i % analysis.space.total for i in (analysis.readers[0], analysis.readers[-1])
            )
            notes.append(
                f"score cls is the mean of what tokens {first}–{last} pay, which are read together"
            )
        block = analysis.blocks[site.block]
        if any(s.reads(v) for s, v in scores) and block.several:
            notes.append(
                f"scores at block {block.index} read all {len(block.attentions)} of its "
                "attentions, as so many more heads"
            )
    return notes
