"""A preset as the planner sees it: where its steps may be, and with which counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from tcompile.analysis.model import Analysis
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.schedule import Reduction, Schedule
from tcompile.core.site import SiteName
from tcompile.methods.composition import composed, parse_method, replaced_scores
from tcompile.methods.context import Context, SiteConstraints, SiteRule
from tcompile.methods.presets import Preset
from tcompile.methods.schedulers import Place
from tcompile.methods.schedulers.base import Scheduler
from tcompile.passes.reduce.check import check_schedule, dense_grid, without_schedule
from tcompile.passes.reduce.reducers import find_reducer
from tcompile.passes.reduce.reducers.base import Ask

#: Kinds of sites where tokens leave for good, which is what the planner plans.
KINDS = ("attn", "block", "output")
#: What to do with a method that cannot be planned.
OWN_SCHEDULE = "with --keep R and no other budget it goes by its own schedule"


@dataclass(frozen=True, eq=False)
class Method:
    """A score and a reducer whose sites and counts are free.

    Attributes:
        text: as in `--method`.
        preset, values: it, and its parameters.
        analysis: of the model.
        context: what it is composed for.
        outputs: `reduced` or `restored`.
        sites: where its steps may be, in the order in which they run.
    """

    text: str
    preset: Preset
    values: Mapping[str, Any]
    analysis: Analysis
    context: Context
    outputs: str
    sites: tuple[SiteRule, ...]

    @property
    def key(self) -> str:
        """The key of its reducer's costs: parameters that set a budget do not matter."""
        free, known = (*self.preset.budget, "block", "site"), self.preset.parameters
        given = [
            f"{k}={v}"
            for k, v in sorted(self.values.items())
            if k not in free and v != known[k].default
        ]
        return self.preset.name + (f":{','.join(given)}" if given else "")

    def single_step(self, site: SiteRule, count: int) -> Schedule:
        """The schedule of one step from all tokens to a whole count, prefix included; the reducer
        may still refuse it."""
        keep = count - self.context.shape.prefix
        return _composed(
            self.text, self.preset, self.values, self.context, [Place(site.name, keep)]
        )

    def reachable(self, site: SiteRule, counts: Iterable[int]) -> list[int]:
        """The counts below N that a site can keep, prefix included: rounded up to whole groups,
        each once, falling."""
        shape, group = self.context.shape, site.granularity
        keeps = {math.ceil((n - shape.prefix) / group) * group for n in counts if n > shape.prefix}
        return sorted((k + shape.prefix for k in keeps if k < shape.patches), reverse=True)

    def schedule(self, places: Sequence[Place], notes: Sequence[str] = ()) -> Schedule:
        """Its steps at these places, checked.

        Args:
            places: patch tokens that stay, without the prefix.

        Raises:
            UsageError: the reducer or the model cannot do it.
        """
        made = _composed(self.text, self.preset, self.values, self.context, places)
        scores = replaced_scores(self.preset, self.context, self.values, made.reductions)
        made = replace(made, notes=(*notes, *scores))
        check_schedule(self.analysis, made, self.outputs)
        return made

    def composed(self, places: Sequence[Place]) -> tuple[Reduction, ...]:
        """Its reductions at these places, unchecked.

        Raises:
            UsageError: the preset cannot be composed for them.
        """
        return _composed(self.text, self.preset, self.values, self.context, places).reductions

    def descend(self, keep: int) -> list[Place]:
        """The fewest steps, as early as they can be, down to so many patch tokens or few more.

        Raises:
            UsageError: there are too few sites for that.
        """
        count, found, block = self.context.shape.patches, list[Place](), -1
        for rule in self.sites:
            at = rule.place(self.context.shape.blocks)[0]
            if count <= keep:
                break
            if at == block:  # once in a block
                continue
            most = count if rule.most_dropped is None else int(rule.most_dropped * count)
            to = max(keep, count - most, rule.least - self.context.shape.prefix)
            to = math.ceil(to / rule.granularity) * rule.granularity
            if to < count:
                found.append(Place(rule.name, to))
                count, block = to, at
        if count > keep + max(r.granularity for r in self.sites):
            raise UsageError(
                f"{self.preset.name} cannot come down to {keep} tokens here", where="--method"
            )
        return found


def method_for(
    analysis: Analysis, room: SiteConstraints, text: str, outputs: str = "reduced"
) -> Method:
    """A preset on a model, as the planner sees it.

    Raises:
        UsageError: unknown, its steps come back or need counts of their own, or the model has no
            site for it.
    """
    preset, values = parse_method(text)
    shape = analysis.shape
    values = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}
    context = Context(preset.name, shape, analysis.has_cls, Fraction(1, 2), room)
    kinds = _kinds(preset, context, values)
    rules: list[SiteRule] = []
    reason = f"{preset.name} has no legal site in this model"
    for site in analysis.sites:
        if site.kind not in kinds:
            continue
        step = max(site.step(outputs), 1)
        keep = math.ceil(shape.patches * 3 / 4 / step) * step
        try:
            made = _composed(text, preset, values, context, [Place(site.name, keep)])
            check_schedule(analysis, made, outputs)
        except TcompileError as error:
            reason = without_schedule(error)
            continue
        rules.append(_rule(analysis, site.name, step, made.reductions[0]))
    if not rules:
        raise UsageError(
            f"cannot be planned: {reason}", where=f"--method {preset.name}", hint=OWN_SCHEDULE
        )
    return Method(text, preset, values, analysis, context, outputs, tuple(rules))


def _composed(
    text: str, preset: Preset, values: Mapping[str, Any], context: Context, places: Sequence[Place]
) -> Schedule:
    given = Scheduler("planned", lambda context, values: list(places))
    try:
        steps = composed(replace(preset, scheduler=given), context, values)
    except (ValueError, LookupError, RuntimeError) as error:
        # What a preset does at a step may be written for the places of its own schedule.
        raise UsageError("goes by places and counts of its own", where=preset.name) from error
    return Schedule(text, context.shape, steps)


def _kinds(preset: Preset, context: Context, values: Mapping[str, Any]) -> set[str]:
    """The kinds of sites that its own schedule has."""
    if preset.scheduler.observes:
        return {"attn", "block"} if context.room and context.room.parallel else {"attn"}
    found = {p.site.kind for p in preset.scheduler.run(context, values)}
    apart = sorted(found - set(KINDS))
    if apart or not found:
        what = "tokens come back behind each of its steps" if apart else "it has no steps here"
        raise UsageError(
            f"cannot be planned: {what}", where=f"--method {preset.name}", hint=OWN_SCHEDULE
        )
    return found


def _rule(analysis: Analysis, site: SiteName, step: int, reduction: Reduction) -> SiteRule:
    """The limits of a step there, found by asking the reducer.

    Raises:
        UsageError: it takes some counts only, such as those of a smaller grid.
    """
    shape, whole = analysis.shape, dense_grid(analysis)
    reducer, values = find_reducer(reduction.reducer.name).bind(reduction.reducer)
    segments = analysis.space.segments
    count = shape.patches // segments
    asks = range(step, shape.patches, step)
    ask = Ask(
        count=count, keep=1, parameters=values, find=find_reducer, grid=whole, dense_grid=whole
    )
    can = [k for k in asks if not reducer.problem(replace(ask, keep=k // segments))]
    if not can or can != list(asks)[-len(can) :]:
        raise UsageError(
            f"cannot be planned: {reducer.name} takes some token counts only",
            where=f"site {site}",
            hint=OWN_SCHEDULE,
        )
    few = can[0] <= max(4, step) * segments
    least = shape.prefix + (can[0] if few else step)
    most = None if few else (shape.patches - can[0]) / shape.patches
    return SiteRule(site, step, least, most)
