"""Steps taken alone: a method's reduction at one site of an otherwise dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from tcompile.core.schedule import Reduction, Schedule
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Step, Values
from tcompile.methods.presets import Preset
from tcompile.methods.score_fallbacks import score_fallback
from tcompile.passes.reduce.reducers import traits_of
from tcompile.planning.losses.base import Composition
from tcompile.planning.method_schedule import site_constraints

if TYPE_CHECKING:
    from tcompile.analysis.model import Analysis


def single_step(
    analysis: Analysis,
    preset: Preset,
    values: Values,
    site: SiteName,
    count: int,
    outputs: str = "reduced",
) -> Schedule:
    """The schedule of one step from all tokens to a whole count, prefix included."""
    shape = analysis.shape
    keep = count - shape.prefix
    context = Context(
        preset.name,
        shape,
        analysis.has_cls,
        Fraction(keep, shape.patches),
        site_constraints(analysis, outputs),
    )
    step = Step(context, values, site, shape.patches, keep, 0, 1)
    score = preset.score_at(step)
    if score is not None:
        score = score_fallback(score, context, site)
    reduction = Reduction(site, score, preset.reducer_at(step), keep)
    return Schedule(preset.name, shape, (reduction,))


def composition(schedule: Schedule) -> Composition:
    """How steps of the method of a single step add up."""
    merges = any("merge" in traits_of(r.reducer) for r in schedule.reductions)
    return "share" if merges else "difference"


def snapped(
    analysis: Analysis, site: str, counts: Sequence[int], outputs: str = "reduced"
) -> list[int]:
    """The counts below N that a site can keep: rounded up to whole groups, each once, falling."""
    shape, found = analysis.shape, analysis.site(site)
    group = found.step(outputs) if found else 1
    keeps = {math.ceil((n - shape.prefix) / group) * group for n in counts if n > shape.prefix}
    return sorted((k + shape.prefix for k in keeps if k < shape.patches), reverse=True)
